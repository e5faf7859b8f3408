"""Each task's loss since the last log: the mean over its target tokens on all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ortholora.engine.distributed import summed


class TaskLosses:
    """Sums of token losses and counts of target tokens, of this rank, until they are asked for.

    Args:
        tasks: Names of the T tasks.
        device: Where losses are computed: they stay there between logs.
    """

    def __init__(self, tasks: list[str], device: torch.device) -> None:
        self.tasks, self._device = tasks, device
        self._own = torch.zeros(len(tasks), device=device)
        self._own_targets = torch.zeros(len(tasks), dtype=torch.float64)
        self._total = torch.zeros(2, len(tasks), dtype=torch.float64)  # losses and targets, of all ranks

    def add(self, losses: Tensor, ids: Tensor) -> None:
        """Add losses of tokens and their tasks (any equal shapes)."""
        tasks = ids.flatten().to(self._device, non_blocking=True)
        # Added up here first: one token's loss would be lost in a large sum.
        self._own += torch.zeros_like(self._own).index_add_(0, tasks, losses.flatten().to(self._device).float())

    def add_targets(self, targets: Tensor) -> None:
        """Add this rank's `[T]` counts of target tokens."""
        self._own_targets += targets

    def forget_own(self) -> None:
        """Drop what this rank added since the sums of all ranks were last made."""
        self._own.zero_()
        self._own_targets.zero_()

    def take(self) -> dict[str, float]:
        """Means since the last call, without tasks that had no target. A collective."""
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
        if state["tasks"] != list(self.tasks):
            raise ValueError(f"The state should be for tasks {list(self.tasks)!r}. Found {state['tasks']!r}.")
        self._total = state["total"].clone()

    def _gathered(self) -> Tensor:
        own = torch.stack([self._own.cpu().double(), self._own_targets])
        self.forget_own()
        self._total += summed(own, self._device)
        return self._total.clone()
