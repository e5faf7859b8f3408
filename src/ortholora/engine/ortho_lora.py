"""`OrthoLora`: capture in the backward, resolve once per optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine.buffers import ShapeGroup, Slot, group_by_shape
from ortholora.engine.capture import CurrentBatch, PureHook, install, uninstall
from ortholora.engine.checks import (
    batch_norms,
    check_capture_is_complete,
    check_rows_are_apart,
    check_untouched,
    check_unused,
    check_weights,
    refuse_shared_storage,
    refuse_wrappers,
)
from ortholora.engine.distributed import Reduced, agree, reduce_mean
from ortholora.engine.fused import FusedLayer, why_not_fused
from ortholora.engine.gram import Block, Blocks, unit_trace
from ortholora.engine.grouping import Grouping, TaskIds
from ortholora.engine.layers import find_matrices
from ortholora.engine.memory import RunningMeans
from ortholora.engine.rules import Rule, RuleContext, get_rule
from ortholora.engine.rules.base import memory_of, restore_state, state_of
from ortholora.engine.sharded import local, part_of, refuse_layouts, sharding_modules
from ortholora.engine.stats import StepStats
from ortholora.engine.summary import describe
from ortholora.engine.watch import Watch
from ortholora.errors import CaptureError, RuleError

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
        rule: `"ortho"` (the paper), `"sum"` (joint training), `"module:attribute"`, or a rule of your own.
        block: What conflict is judged on: `"matrix"` (the paper), `"layer"` or `"all"`.
        seed: Seed of the rule's generator (visit orders).
        fused: Run LoRA layers over plain linear bases in one autograd Function, which is faster. With a
            half-precision base their LoRA products then run in that precision; `False` keeps PEFT's float32.
        buffer_dtype: Precision in which task gradients are kept: `torch.float32`, or `torch.bfloat16` for
            half the memory. Inner products and sums over tasks are taken in float32 either way.

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
        fused: bool = True,
        buffer_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tasks = _check_tasks(tasks)
        self.rule = get_rule(rule)
        refuse_wrappers(model)
        self._model = model
        self.matrices = find_matrices(model)
        refuse_shared_storage(self.matrices)
        self._norms = batch_norms(model)
        refuse_layouts(self.matrices)
        self._groups, slots = group_by_shape(self.matrices, len(self.tasks), _check_dtype(buffer_dtype))
        self._blocks = Blocks(self._groups, [m.name for m in self.matrices], block)
        self._settings = {"rule": _name_of(self.rule), "block": block}
        self._means = RunningMeans(self._groups, memory_of(self.rule))
        self._generator = torch.Generator().manual_seed(seed)
        self._current = CurrentBatch()
        self._present = torch.zeros(len(self.tasks), dtype=torch.bool)
        self._step = 0
        self._checks_left = CHECKED_STEPS  # from the attachment on, also in a resumed run
        self._sharding: list[nn.Module] = []
        self._captured: list[nn.Linear] = []
        self._hooks: list[PureHook] = []
        self._fused: dict[str, FusedLayer] = {}
        self._not_fused: dict[str, str] = {}  # layers with one-pass matrices, and why
        self._watch = Watch(model, self.matrices)
        self._install(slots)
        self._fuse(slots, fused)

    @contextmanager
    def batch(self, task_ids: TaskIds) -> Iterator[None]:
        """Say which task each row or token of the next micro-batch belongs to.

        Forward and backward belong inside. Call it once per micro-batch; several of them accumulate into
        one step.

        Args:
            task_ids: Row-level ids `[B]`, token-level ids `[B, S]` (packed: `[1, S]`), or one int: a
                task-pure micro-batch. Keep tensors on the CPU to avoid a synchronisation.

        Raises:
            CaptureError: Rows are mixed but a layer needs task-pure micro-batches, or batches are nested.
            ValueError: Ids of a wrong dtype, dimension or range.
        """
        if self._current.grouping is not None:
            raise CaptureError(
                "ortho.batch(...) is open already",
                expected="one micro-batch at a time",
                found="a nested ortho.batch(...)",
                todo="close the first `with` block before the next micro-batch",
            )
        grouping = Grouping(task_ids, len(self.tasks))
        self._check_pure(grouping)
        if not grouping.pure:
            check_rows_are_apart(self._norms)
        self._current.grouping = grouping
        self._present[grouping.tasks] = True
        try:
            yield
        finally:
            self._current.grouping = None

    def resolve(self) -> StepStats:
        """Reduce over ranks, let the rule decide, write `.grad`. Once per optimizer step, before clipping.

        Returns:
            What happened; see `StepStats`.

        Raises:
            CaptureError: Nothing was captured, or a trainable LoRA matrix received a gradient that the
                capture did not see.
        """
        # Outside of any autocast block of the caller: it would take the Gram in half precision.
        with torch.no_grad(), torch.autocast(self._groups[0].buffer.device.type, enabled=False):
            return self._resolve()

    def _resolve(self) -> StepStats:
        checked = self._check_due()
        if checked:
            self._sharding = sharding_modules(self._model)
        for module in self._sharding:
            # After `set_reshard_after_backward(False)` the matrices would still be the gathered ones, and not those
            # that the optimizer holds. No communication, and nothing to do otherwise.
            module.reshard()  # type: ignore[operator]
        present = agree(self._groups, self._present)
        self._watch.check(thoroughly=checked)
        # Checked after the reduction: DDP writes `.grad` on ranks that did not run the layer, too.
        self._check_something_captured()
        incomplete = [group for group in self._groups if not all(group.touched)]  # in most steps none
        check_untouched(incomplete)
        check_unused(incomplete)
        # Running means are kept whole on every rank, so that any rank's state_dict() is complete.
        shares = reduce_mean(self._groups, whole=checked or self._means.decay is not None)
        if checked:
            refuse_layouts(self.matrices)
            check_capture_is_complete(self._groups)
        reduced = Reduced(self._means.stack(present), shares)
        gram = self._blocks.gram(reduced.inner_products())
        context = RuleContext(self.tasks, present, self._step, self._generator)
        weights, combination = self._decide(gram, context)
        self._write(reduced, weights)
        self._step += 1
        self._checks_left = max(0, self._checks_left - 1)
        self.discard()
        count = len(self.tasks)
        return StepStats(
            tasks=self.tasks,
            blocks=tuple(self._blocks.names),
            gram=gram[:, :count, :count],
            weights=weights[:, :count],
            combination=None if combination is None else combination[..., :count],
            present=present,
        )

    def discard(self) -> None:
        """Forget what was captured since the last resolve (a skipped step)."""
        for group in self._groups:
            group.clear()
        self._present = torch.zeros_like(self._present)

    def task_gradients(self) -> dict[str, Tensor]:
        """What was captured since the last resolve, on this rank: name → `[T, *shape]` (a view)."""
        return {
            matrix.name: group.buffer[row].view(-1, *group.shape)
            for group in self._groups
            for row, matrix in enumerate(group.matrices)
            if group.touched[row]
        }

    def detach(self) -> None:
        """Give the model back exactly as it was."""
        self._watch.stop()
        for module in self._captured:
            uninstall(module)
        for hook in self._hooks:
            hook.remove()
        for layer in self._fused.values():
            layer.uninstall()
        self._captured, self._hooks, self._fused = [], [], {}

    def state_dict(self) -> dict[str, Any]:
        """State to resume from: visit orders, the rule's state, running means."""
        return {
            "tasks": list(self.tasks),
            **self._settings,
            "step": self._step,
            "generator": self._generator.get_state(),
            "rule_state": state_of(self.rule),
            "means": self._means.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state belongs to other tasks, another rule or another block.
        """
        for key, own in {"tasks": list(self.tasks), **self._settings}.items():
            if state[key] != own:
                raise ValueError(f"The state should be for {key} {own!r}. Found {state[key]!r}.")
        self._step = int(state["step"])
        self._generator.set_state(state["generator"].cpu())
        restore_state(self.rule, state["rule_state"])
        self._means.load_state_dict(state["means"])

    def summary(self) -> str:
        """How every trainable parameter gets its gradient, one line a kind."""
        return describe(self._model, self.matrices, len(self._fused), self._not_fused)

    # ------------------------------------------------------------------------------------------------

    def _install(self, slots: dict[int, Slot]) -> None:
        try:
            pure = {id(m.parameter) for m in self.matrices if m.task_pure}
            hooked: set[int] = set()
            for i, matrix in enumerate(self.matrices):
                if id(matrix.parameter) in pure:  # a tied parameter has one hook, which sees all its uses
                    if id(matrix.parameter) not in hooked:
                        self._hooks.append(PureHook(slots[i], self._current))
                        self._hooks[-1].renew()
                        hooked.add(id(matrix.parameter))
                elif matrix.owner not in self._captured:
                    assert isinstance(matrix.owner, nn.Linear)
                    install(matrix.owner, slots[i], self._current)
                    self._captured.append(matrix.owner)
        except CaptureError:
            self.detach()  # what was installed before the refusal must not stay behind
            raise

    def _fuse(self, slots: dict[int, Slot], wanted: bool) -> None:
        members: dict[str, list[int]] = {}
        for i, matrix in enumerate(self.matrices):
            if matrix.owner in self._captured:
                members.setdefault(matrix.layer, []).append(i)
        for name, indices in members.items():
            layer = self._model.get_submodule(name)
            why = why_not_fused(layer, [self.matrices[i] for i in indices]) if wanted else "switched off"
            if why is not None:
                self._not_fused[name] = why
                continue
            of_a, of_b = sorted(indices, key=lambda i: self.matrices[i].role)
            adapter = layer.active_adapters[0]  # type: ignore[index]
            self._fused[name] = FusedLayer(layer, adapter, (slots[of_a], slots[of_b]), self._current)  # type: ignore[arg-type]
            self._fused[name].install()

    def _check_pure(self, grouping: Grouping) -> None:
        if not self._hooks:
            return
        if not grouping.pure:
            pure = [m for m in self.matrices if m.task_pure]
            raise CaptureError(
                f"{pure[0].name} cannot be split by row ({len(pure)} such matrices)",
                expected="task-pure micro-batches: all rows of one task",
                found=f"a micro-batch with {len(grouping.tasks)} tasks; {pure[0].task_pure}",
                todo="accumulate one micro-batch per task (ortho.batch(task_index)), or leave the module out "
                "of `target_modules`",
            )
        for hook in self._hooks:
            hook.renew()

    def _check_something_captured(self) -> None:
        if not any(any(group.touched) for group in self._groups):
            raise CaptureError(
                "resolve() found no task gradient",
                expected="at least one backward inside `with ortho.batch(task_ids):` since the last resolve",
                found="none",
                todo="wrap forward and backward in ortho.batch(...), and call resolve() once per step",
            )

    def _check_due(self) -> bool:
        return self._checks_left > 0 or self._step % CHECK_EVERY == 0

    def _decide(self, gram: Tensor, context: RuleContext) -> tuple[Tensor, Tensor | None]:
        answer = self.rule(unit_trace(gram), context)
        # On the CPU this look is free; on a GPU it would synchronise, so there only with the other checks.
        if gram.device.type == "cpu" or self._check_due():
            check_weights(gram, answer, self.rule)
        blocks, width, _ = gram.shape
        count = len(self.tasks)
        if answer.shape == (blocks, count, width):
            return answer.sum(1), answer
        if answer.shape == (blocks, width):
            return answer, None
        raise RuleError(
            f"The rule {self.rule!r} returned something of the wrong shape",
            expected=f"weights [{blocks}, {width}] or combinations [{blocks}, {count}, {width}]",
            found=f"shape {list(answer.shape)}",
            todo="correct the rule; docs/rules.md shows one",
        )

    def _write(self, reduced: Reduced, weights: Tensor) -> None:
        # One shape at a time, so that no more than one shape's result is alive beside the task gradients.
        for i, (group, part) in enumerate(zip(self._groups, self._blocks.per_group(weights), strict=True)):
            _write_group(group, reduced.weighted_sum(i, part))


def _write_group(group: ShapeGroup, rows: Tensor) -> None:
    """Write `rows [n, numel]` to `.grad` of every touched matrix; a missing `.grad` is set."""
    gradients: list[Tensor] = []
    values: list[Tensor] = []
    for touched, matrix, value in zip(group.touched, group.matrices, rows.view(-1, *group.shape).unbind(), strict=True):
        if not touched:
            continue
        parameter = matrix.parameter
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        gradients.append(local(parameter.grad))
        values.append(part_of(value, parameter))
    if gradients:
        torch._foreach_copy_(gradients, values)


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
