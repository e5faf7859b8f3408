"""Measure the task gradients of the held-out rows, one backward a micro-batch. Nothing of the training is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ortholora.data.encoded import MixedDataset
from ortholora.engine import OrthoLora
from ortholora.errors import NonFiniteLossError
from ortholora.study.diagnose.rows import Groups
from ortholora.trainers.trainer import OrthoTrainer


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one point of the way is judged from.

    Attributes:
        names: Name of each of the N LoRA matrices.
        layers: The LoRA layer of each.
        roles: `A` or `B`, of each.
        gram: `[N, M, T, M, T]` inner products of the gradients of every task's mean loss, before its weight.
        losses: `[M, T]` mean losses.
        halves: Mean gradient over either half of the rows, of each matrix: `[2, T, *shape]`.
    """

    names: list[str]
    layers: list[str]
    roles: list[str]
    gram: np.ndarray
    losses: np.ndarray
    halves: dict[str, Tensor]


class HeldOut:
    """The held-out rows of a trainer's tasks (they are in the place of the dev rows), cut as its steps are.

    Args:
        trainer: Trains the tasks.
        groups: How the rows are dealt to micro-batches.
    """

    def __init__(self, trainer: OrthoTrainer, groups: Groups) -> None:
        self.trainer: OrthoTrainer = trainer
        self.groups: Groups = groups
        splits = [task.dev for task in trainer.tasks]
        self._rows = MixedDataset(splits)
        self._lengths = [split.lengths for split in splits]
        weights = np.array([split.weights for split in splits], dtype=np.float64)
        # One normaliser for all micro-batches: a mean of ratios would not be the gradient of the mean loss.
        self._normaliser = weights.sum(1) / groups.count
        # How many micro-batches a step is cut into may be asked for; these are no steps.
        self._planner = trainer.planner if trainer.planner.micro_batches is None else _uncounted(trainer)

    @property
    def tasks(self) -> int:
        """T."""
        return len(self._lengths)

    def gradients(self) -> Gradients:
        """Task gradients of every micro-batch, in evaluation mode (no dropout).

        Raises:
            NonFiniteLossError: A loss is NaN or infinite; names the task.
        """
        model = self.trainer._bare_model()
        with without_gradients(model), model.evaluating():
            ortho = OrthoLora(model, [task.data.name for task in self.trainer.tasks], "sum")
            try:
                parts = [self._captured(ortho, k) for k in range(self.groups.count)]
                matrices = [m for m in ortho.matrices if m.name in parts[0][0]]
            finally:
                ortho.detach()
        losses = np.stack([found for _, found in parts])
        captured = {m.name: torch.stack([found[m.name] for found, _ in parts]) for m in matrices}
        return Gradients(
            names=[m.name for m in matrices],
            layers=[m.layer for m in matrices],
            roles=[m.role for m in matrices],
            gram=np.stack([_gram(values) for values in captured.values()]),
            losses=losses,
            halves={
                name: torch.stack([values[list(half)].mean(0) for half in self.groups.halves])
                for name, values in captured.items()
            },
        )

    @torch.no_grad()
    def losses(self, groups: Sequence[int] | None = None) -> np.ndarray:
        """Mean loss of every task in some (or all) of the micro-batches, `[M, T]`, as the model is now."""
        model = self.trainer._bare_model()
        asked = range(self.groups.count) if groups is None else groups
        found = np.zeros((len(asked), self.tasks))
        with model.evaluating():
            for position, group in enumerate(asked):
                for batch in self._batches(group):
                    found[position] += self._losses_of(model, batch).double().cpu().numpy()
        self._check(found)
        return found

    def _captured(self, ortho: OrthoLora, group: int) -> tuple[dict[str, Tensor], np.ndarray]:
        losses = np.zeros(self.tasks)
        for batch in self._batches(group):
            with ortho.batch(self.trainer.task_ids_of(batch)):
                own = self._losses_of(self.trainer._bare_model(), batch)
                own.sum().backward()
            losses += own.detach().double().cpu().numpy()
        self._check(losses)
        found = {name: values.detach().float().cpu().clone() for name, values in ortho.task_gradients().items()}
        ortho.discard()
        return found, losses

    def _losses_of(self, model: Any, batch: dict[str, Any]) -> Tensor:
        with self.trainer.compute_loss_context_manager(), self.trainer.accelerator.autocast():
            summed = model.sum_losses(model(batch["inputs"], batch["task_ids"]), batch)
        return summed / torch.from_numpy(self._normaliser).to(summed)

    def _batches(self, group: int) -> Iterator[dict[str, Any]]:
        rows = [(task, row) for task in range(self.tasks) for row in self.groups.of(group)]
        lengths = [self._lengths[task][row] for task, row in rows]
        for cut in self._planner.plan(lengths, [task for task, _ in rows]):
            yield self.trainer._prepare_inputs(self.trainer.collator([self._rows[rows[i]] for i in cut]))

    def _check(self, losses: np.ndarray) -> None:
        broken = ~np.isfinite(losses.reshape(-1, self.tasks)).all(0)
        if broken.any():
            task = self.trainer.tasks[int(np.flatnonzero(broken)[0])].data.name
            step = self.trainer.state.global_step
            raise NonFiniteLossError(
                f"The loss of task {task!r} is not finite on the rows that are measured on, after step {step}",
                expected="finite losses",
                found="NaN or infinity",
                todo="look at the task's rows; or, with another --out, lower `training.learning_rate` or use "
                "`dtype: float32`",
            )


def _uncounted(trainer: OrthoTrainer) -> Any:
    return replace(trainer.planner, micro_batches=None)


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Put the gradients that are there aside."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _gram(values: Tensor) -> np.ndarray:
    """Inner products of one matrix's gradients `[M, T, *shape]`, `[M, T, M, T]`."""
    count, tasks = values.shape[:2]
    flat = values.reshape(count * tasks, -1).double()
    return (flat @ flat.T).reshape(count, tasks, count, tasks).numpy()
