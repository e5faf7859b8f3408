"""Running means of the task gradients, for rules that ask for a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.buffers import ShapeGroup


class RunningMeans:
    """Exponential means `m_t ← β m_t + (1 − β) g_t`, corrected for their start at zero.

    A task's mean moves only in steps that had rows of it. Without a decay nothing is kept or computed.
    Memory: as much again as the task gradients.

    Args:
        groups: The shape groups whose task gradients are averaged.
        decay: β in (0, 1), or None for no memory.
    """

    def __init__(self, groups: Sequence[ShapeGroup], decay: float | None) -> None:
        self._groups = groups
        self.decay: float | None = decay
        self._sums: list[Tensor] | None = None
        self._seen = torch.zeros(groups[0].num_tasks)

    def stack(self, present: Tensor, factors: Tensor | None = None) -> list[Tensor]:
        """Update the means with this step and return what the Gram is taken over.

        Args:
            present: `[T]` bool, tasks with rows in this step.
            factors: `[T]`, by which the task gradients are multiplied on their way into the means. None: 1.

        Returns:
            For each group `[n, T, numel]`, or `[n, 2T, numel]` (current, then means) with a memory.
        """
        if self.decay is None:
            return [group.buffer for group in self._groups]
        if self._sums is None:
            self._sums = [torch.zeros_like(group.buffer, dtype=torch.float32) for group in self._groups]
        # A step that overflowed (GradScaler will skip it) must not stay in the means for ever.
        finite = all(bool(group.buffer.sum(dtype=torch.float32).isfinite()) for group in self._groups)
        moves = present if finite else torch.zeros_like(present)
        self._seen += moves
        # β for present tasks, 1 for absent ones: those keep their mean.
        keep = torch.where(moves, self.decay, 1.0)
        new = (1 - keep) if factors is None else torch.where(moves, (1 - keep) * factors, 0.0)
        correction = (1 - self.decay**self._seen).clamp_min(torch.finfo(torch.float32).tiny)
        stacks = []
        for group, total in zip(self._groups, self._sums, strict=True):
            if finite:
                total.mul_(keep.to(total.device)[:, None]).add_(group.buffer * new.to(total.device)[:, None])
            means = total / correction.to(total.device)[:, None]
            stacks.append(torch.cat([group.buffer.float(), means], dim=1))
        return stacks

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts; the sums are None before the first step."""
        sums = None if self._sums is None else [total.clone() for total in self._sums]
        return {"sums": sums, "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()` onto the devices of the current buffers."""
        sums = state["sums"]
        if sums is not None:
            pairs = zip(sums, self._groups, strict=True)
            sums = [total.to(group.buffer.device).clone() for total, group in pairs]
        self._sums = sums
        self._seen = state["seen"].clone()
