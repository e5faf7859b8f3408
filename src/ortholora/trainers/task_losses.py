"""Each task's loss since the last log, over all ranks: `(Σ of its losses) / (Σ of what they count)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.distributed import summed


class TaskLosses:
    """Sums of losses and of what they count, of this rank, until they are asked for.

    Give each loss with `add`, which counts it as one (rows); or, where counts are known otherwise (target tokens,
    steps), with `add_losses` and `add_counts`.

    Args:
        tasks: Names of the T tasks.
        device: Where losses are computed: they stay there between logs.
        dtype: What losses are summed in.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.tasks: list[str] = list(tasks)
        self._device = device
        self._own = torch.zeros(len(self.tasks), device=device, dtype=dtype)
        self._own_counts = torch.zeros(len(self.tasks), dtype=torch.float64)
        # The same since `take_step`: logs and steps end at different times.
        self._step, self._step_counts = torch.zeros_like(self._own), torch.zeros_like(self._own_counts)
        self._total = torch.zeros(2, len(self.tasks), dtype=torch.float64)  # losses and counts, of all ranks

    def add(self, losses: Tensor, ids: Any) -> None:
        """Add losses, each of which counts one.

        Args:
            losses: Of rows or tokens, any shape.
            ids: The task of each of them, as many.
        """
        ids = torch.as_tensor(ids)
        self.add_losses(losses, ids)
        self.add_counts(torch.bincount(ids.flatten().cpu(), minlength=len(self.tasks)))

    def add_losses(self, losses: Tensor, ids: Tensor) -> None:
        """Add losses and their tasks (any equal shapes), counted by `add_counts`."""
        tasks = ids.flatten().to(self._device, non_blocking=True)
        values = losses.detach().flatten().to(self._own)
        # Added up here first: one token's loss would be lost in a large sum.
        added = torch.zeros_like(self._own).index_add_(0, tasks, values)
        self._own += added
        self._step += added

    def add_counts(self, counts: Tensor | float) -> None:
        """Add what this rank's losses count: `[T]`, or one number for every task."""
        self._own_counts += counts
        self._step_counts += counts

    def forget_own(self) -> None:
        """Drop what this rank added since the sums of all ranks were last made, and since the last step."""
        for values in (self._own, self._own_counts, self._step, self._step_counts):
            values.zero_()

    def take_step(self) -> tuple[Tensor, Tensor]:
        """This rank's sums and counts `[T]` since the last call, for `OrthoLora.resolve`. No synchronisation."""
        taken = self._step.clone(), self._step_counts.clone()
        self._step.zero_()
        self._step_counts.zero_()
        return taken

    def take(self) -> dict[str, float]:
        """Means since the last call, without tasks of which nothing was counted. A collective."""
        total = self._gathered()
        self._total.zero_()
        return {
            name: float(loss / count) for name, loss, count in zip(self.tasks, *total.tolist(), strict=True) if count
        }

    def state_dict(self) -> dict[str, Any]:
        """What was not logged yet. A collective."""
        return {"tasks": list(self.tasks), "total": self._gathered()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: The state belongs to other tasks.
        """
        if state["tasks"] != self.tasks:
            raise ValueError(f"The state should be for tasks {self.tasks!r}. Found {state['tasks']!r}.")
        self._total = state["total"].clone()

    def _gathered(self) -> Tensor:
        own = torch.stack([self._own.cpu().double(), self._own_counts])
        self._own.zero_()
        self._own_counts.zero_()
        self._total += summed(own, self._device)
        return self._total.clone()
