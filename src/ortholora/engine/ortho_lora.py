"""`OrthoLora`: capture in the backward, resolve once per optimizer step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine.answers import checked_answer
from ortholora.engine.attach import Attachment
from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.checks import check_weights_are_finite
from ortholora.engine.distributed import Reduced, agree, reduce_mean
from ortholora.engine.gradients import write_group
from ortholora.engine.gram import Block, Blocks, unit_trace
from ortholora.engine.grouping import Grouping, TaskIds
from ortholora.engine.halves import Halves, wants_halves, whole
from ortholora.engine.layers import Matrix
from ortholora.engine.losses import LossSums, check_losses, check_none_missing, mean_losses
from ortholora.engine.memory import RunningMeans
from ortholora.engine.precondition import preconditioned, preconditioner_of
from ortholora.engine.rescale import SafeGram
from ortholora.engine.rules import Rule, RuleContext, get_rule
from ortholora.engine.rules.base import (
    factors_of,
    loses_weights,
    memory_of,
    needs_losses,
    restore_state,
    state_of,
)
from ortholora.engine.stats import StepStats
from ortholora.engine.task_weights import check_weights, weight_factors

#: Steps at whose end captured gradients are compared with `.grad` (one host synchronisation each): the
#: first two, because B = 0 hides A in the first, and then every so many.
CHECKED_STEPS, CHECK_EVERY = 2, 100


class OrthoLora:
    """Per-task gradients of every LoRA matrix in one backward, and a conflict rule on top of them.

    ```python
    ortho = OrthoLora(peft_model, tasks=["cola", "sst2"])
    for batch in loader:
        with ortho.batch(batch.pop("task_ids")):
            loss = ...                      # any loss that is a sum over rows or tokens
            loss.backward()
        stats = ortho.resolve()             # writes .grad; before clipping
        optimizer.step(); optimizer.zero_grad()
    ```

    A task's gradient is that of its own part of the loss. For the paper's `w_t ∇L_t` let each task enter
    the loss with the mean over its own rows (times its weight); a plain mean over all rows weights tasks
    by their number of rows.

    Args:
        model: A PEFT model (or any module that contains one) with trainable LoRA matrices.
        tasks: Names of the T tasks, in the order of the task ids.
        rule: A name of docs/rules.md (`"ortho"`, the paper, `"sum"`, joint training, `"gradnorm(alpha=2)"`, …),
            `"torchjd:NAME"`, `"module:attribute"`, or a rule of your own: a function or an object as `Rule` says.
        block: What conflict is judged on: `"matrix"` (the paper), `"layer"` or `"all"`.
        seed: Seed of the rule's generator (visit orders).
        weights: The weight with which each task enters the loss; default: all the same. Only rules that
            divide gradients by their length (`balanced` and its kin) need them: they give task t `w_t` times the
            share that it would have. Under all others the weights act through the gradients, which carry them.
        fused: Run LoRA layers over plain linear bases in one autograd Function, which is faster. With a
            half-precision base their LoRA products then run in that precision; `False` keeps PEFT's float32.
        buffer_dtype: Precision in which task gradients are kept: `torch.float32`, or `torch.bfloat16` for
            half the memory. Inner products and sums over tasks are taken in float32 either way.
        try_out: When a mixed batch holds something new, run it twice more and see whether the rows of every layer
            are the rows of the batch (docs/every-model.md). As a rule that is the first batch and a few later ones.

    Raises:
        CaptureError: The model has no trainable LoRA matrix, is wrapped in something that owns the
            gradients, or is captured already.
        ValueError: Unknown rule, block or buffer_dtype, or task names that are not different.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[str],
        rule: str | Rule = "ortho",
        block: Block = "matrix",
        seed: int = 0,
        *,
        weights: Sequence[float] | None = None,
        fused: bool = True,
        buffer_dtype: torch.dtype = torch.float32,
        try_out: bool = True,
    ) -> None:
        self.tasks: tuple[str, ...] = _check_tasks(tasks)
        self.rule: Rule = get_rule(rule)
        self._preconditioner = preconditioner_of(self.rule)
        self._weights = check_weights(weights, len(self.tasks)) if loses_weights(self.rule) else None
        halved = wants_halves(self.rule)
        self._columns = 2 * len(self.tasks) if halved else len(self.tasks)  # what the capture tells apart
        self._attachment = Attachment(model, self._columns, _check_dtype(buffer_dtype), try_out)
        pure = any(matrix.task_pure for matrix in self.matrices)
        self._halves = Halves(self.tasks, whole_batches=pure) if halved else None
        self._blocks = Blocks(self._groups, [m.name for m in self.matrices], block)
        self._gram = SafeGram(self._blocks)
        self._means = RunningMeans(self._groups, memory_of(self.rule))
        self._generator = torch.Generator().manual_seed(seed)
        self._present = torch.zeros(self._columns, dtype=torch.bool)
        self._step = 0
        self._checks_left = CHECKED_STEPS  # from the attachment on, also in a resumed run
        self._attachment.install(fused)  # last: what is refused above leaves the model alone

    @property
    def matrices(self) -> list[Matrix]:
        """The LoRA matrices whose task gradients are captured, in model order."""
        return self._attachment.matrices

    @property
    def _groups(self) -> list[ShapeGroup]:
        return self._attachment.groups

    @contextmanager
    def batch(self, task_ids: TaskIds, halves: TaskIds | None = None) -> Iterator[None]:
        """Say which task each row or token of the next micro-batch belongs to.

        Forward and backward belong inside. Call it once per micro-batch; several of them accumulate into
        one step.

        Args:
            task_ids: Row-level ids `[B]`, token-level ids `[B, S]` (packed: `[1, S]`), or one int: a
                task-pure micro-batch. Keep tensors on the CPU to avoid a synchronisation.
            halves: For rules that compare two halves of a step (`engine.halves`): 0 or 1 for each of the ids. None:
                dealt out in turn. Other rules do not look at them.

        Raises:
            CaptureError: Rows are mixed but a layer needs task-pure micro-batches, or batches are nested.
            ValueError: Ids of a wrong dtype, dimension or range.
        """
        if self._attachment.was_abandoned():
            self.discard()
            warnings.warn(
                "The gradients of a step were zeroed without resolve(): what was captured in it is forgotten, too",
                stacklevel=3,
            )
        ids = task_ids if self._halves is None else self._halves.split(task_ids, halves)
        grouping = Grouping(ids, self._columns)
        surroundings = self._attachment.open(grouping)
        self._present[grouping.tasks] = True
        try:
            with surroundings:
                yield
            self._attachment.settle()
        finally:
            self._attachment.close()

    def resolve(self, losses: LossSums | None = None) -> StepStats:
        """Reduce over ranks, let the rule decide, write `.grad`. Once per optimizer step, before clipping.

        Args:
            losses: For rules that look at losses (`needs_losses`): `(sums, counts)`, both `[T]`. The sum of each
                task's losses over this rank's rows of the whole step, before any task weight, and the number of
                those rows (or tokens, or whatever they count). Other rules do not look at them.

        Returns:
            What happened; see `StepStats`.

        Raises:
            CaptureError: Nothing was captured, or a trainable LoRA matrix received a gradient that the
                capture did not see.
            RuleError: The rule needs losses and got none, or not those of a task with rows, or one it cannot take.
        """
        asked = check_losses(self.rule, losses, len(self.tasks)) if needs_losses(self.rule) else None
        # Outside of any autocast block of the caller: it would take the Gram in half precision.
        with torch.no_grad(), torch.autocast(self._groups[0].buffer.device.type, enabled=False):
            return self._resolve(asked)

    def _resolve(self, losses: LossSums | None) -> StepStats:
        checked = self._check_due()
        self._attachment.reshard(search=checked)
        present, units = self._agree()
        self._attachment.check(thoroughly=checked)
        means = None if losses is None else mean_losses(losses, self.tasks, present, self._groups[0].buffer.device)
        context = RuleContext(self.tasks, present, self._step, self._generator, means, units)
        reduced = self._reduce(context, checked)
        gram = self._gram.take(reduced, checked)
        check_none_missing(means, gram, self.tasks)
        weights, combination = self._decide(gram, context, checked)
        if self._halves is not None:
            gram = whole(gram)
        self._write(reduced, weights if self._halves is None else weights.repeat(1, 2))
        self._finish_step()
        return self._stats(gram, weights, combination, present)

    def discard(self) -> None:
        """Forget what was captured since the last resolve (a skipped step)."""
        for group in self._groups:
            group.clear()
        self._present = torch.zeros_like(self._present)
        if self._halves is not None:
            self._halves.clear()

    def task_gradients(self) -> dict[str, Tensor]:
        """What was captured since the last resolve, on this rank: name → `[T, *shape]`.

        A view; under a rule with halves, the sum of both.
        """
        count = len(self.tasks)
        return {
            matrix.name: (
                group.buffer[row] if self._halves is None else group.buffer[row, :count] + group.buffer[row, count:]
            ).view(-1, *group.shape)
            for group in self._groups
            for row, matrix in enumerate(group.matrices)
            if group.touched[row]
        }

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        self._attachment.detach()

    def state_dict(self) -> dict[str, Any]:
        """State to resume from: visit orders, the rule's state, running means."""
        return {
            **self._identity(),
            "step": self._step,
            "generator": self._generator.get_state(),
            "rule_state": state_of(self.rule),
            "means": self._means.state_dict(),
            **({} if self._preconditioner is None else {"precondition": self._preconditioner.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state belongs to other tasks, another rule or another block.
        """
        for key, own in self._identity().items():
            if state[key] != own:
                raise ValueError(f"The state should be for {key} {own!r}. Found {state[key]!r}.")
        self._step = int(state["step"])
        self._generator.set_state(state["generator"].cpu())
        restore_state(self.rule, state["rule_state"])
        self._means.load_state_dict(state["means"])
        if self._preconditioner is not None:
            self._preconditioner.load_state_dict(state["precondition"])

    def summary(self) -> str:
        """How every trainable parameter gets its gradient, one line a kind."""
        return self._attachment.summary()

    def capture_by_layer(self) -> dict[str, str]:
        """LoRA layer → how its task gradients are captured: in one pass, or by task-pure micro-batches."""
        return self._attachment.by_layer()

    # ------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What a state must have been taken of to be loaded here."""
        return {"tasks": list(self.tasks), "rule": _name_of(self.rule), "block": self._blocks.block}

    def _agree(self) -> tuple[Tensor, Tensor | None]:
        """The tasks with rows on any rank `[T]`, and the units of their halves `[2, T]`."""
        present, due = agree(self._groups, self._present, self._attachment.trial_is_due())
        self._attachment.try_together(due)
        if self._halves is None:
            return present, None
        present = present.view(2, -1).any(0)
        return present, self._halves.take_step(present, self._groups[0].buffer.device)

    def _check_due(self) -> bool:
        return self._checks_left > 0 or self._step % CHECK_EVERY == 0

    def _reduce(self, context: RuleContext, checked: bool) -> Reduced:
        # Running means and the preconditioner's state are whole on every rank: any rank's state_dict() is complete.
        kept = self._means.decay is not None or self._preconditioner is not None
        shares = reduce_mean(self._groups, whole=checked or kept)
        if checked:
            self._attachment.check_sums()
        if self._preconditioner is not None:
            return Reduced(preconditioned(self._preconditioner, self._groups, context.present, self._step), shares)
        return Reduced(self._means.stack(context.present, factors_of(self.rule, context)), shares)

    def _decide(self, gram: Tensor, context: RuleContext, checked: bool) -> tuple[Tensor, Tensor | None]:
        width = len(self.tasks) if self._halves is not None else gram.shape[1]  # weights are for both halves alike
        answer = checked_answer(self.rule(unit_trace(gram), context), self.rule, gram, len(self.tasks), width)
        # On the CPU this look is free; on a GPU it would synchronise, so there only with the other checks.
        if checked or gram.device.type == "cpu":
            check_weights_are_finite(gram, answer, self.rule)
        if self._weights is not None:
            self._weights = self._weights.to(gram.device)  # copied, and waited for, once
            answer = answer * weight_factors(self._weights, gram, answer.dim())[..., : answer.shape[-1]]
        return (answer, None) if answer.dim() == 2 else (answer.sum(1), answer)

    def _write(self, reduced: Reduced, weights: Tensor) -> None:
        # One shape at a time, so that no more than one shape's result is alive beside the task gradients.
        for i, (group, part) in enumerate(zip(self._groups, self._blocks.per_group(weights), strict=True)):
            write_group(group, reduced.weighted_sum(i, part))

    def _finish_step(self) -> None:
        self._step += 1
        self._checks_left = max(0, self._checks_left - 1)
        self.discard()

    def _stats(self, gram: Tensor, weights: Tensor, combination: Tensor | None, present: Tensor) -> StepStats:
        """The step without the running means that a rule with a memory also saw."""
        count = len(self.tasks)
        return StepStats(
            tasks=self.tasks,
            blocks=tuple(self._blocks.names),
            gram=gram[:, :count, :count],
            weights=weights[:, :count],
            combination=None if combination is None else combination[..., :count],
            present=present,
        )


def _name_of(rule: Rule) -> str:
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{named.__module__}.{named.__qualname__}"


def _check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    names = tuple(tasks)
    if isinstance(tasks, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"tasks should be a list of different names. Found {tasks!r}.")
    return names


def _check_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"buffer_dtype should be torch.float32 or torch.bfloat16. Found {dtype!r}.")
    return dtype
