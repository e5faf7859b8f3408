"""GradNorm's balance, solved in every step: tasks that have learned less get longer gradients.

Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML 2018.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.losses import refused
from ortholora.engine.rules.balanced import balancing_factors, lengths
from ortholora.engine.rules.base import RuleContext

#: Steps whose mean loss is where a task started. The paper takes one; the loss of one small batch is mostly noise.
START_STEPS = 10


class GradNorm:
    """Give every task's gradient the length `L̄ r_t^α` in each block, and sum: `g = L̄ Σ_t r_t^α g_t / ‖g_t‖`.

    That is equation 2 of the paper with an equality sign: its weights follow by gradient steps what is solved here
    exactly, in each block and step. `r_t = L̃_t / mean(L̃)` is the task's relative inverse training rate, with
    `L̃_t` its loss over its loss at the start; means are taken over the tasks with a gradient in the block.

    Args:
        alpha: α ≥ 0. How strongly tasks that lag are preferred; 0 is `balanced`.
        start: The task's loss at the start is its mean over its first so many steps.

    Raises:
        ValueError: An argument is out of range.
    """

    scale_free_per_task = True
    needs_losses = True

    def __init__(self, alpha: float = 1.0, start: int = START_STEPS) -> None:
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha should be a number of at least 0. Found {alpha!r}.")
        if int(start) != start or start < 1:
            raise ValueError(f"start should be a number of steps of at least 1. Found {start!r}.")
        self.alpha, self.start = float(alpha), int(start)
        self._sums: Tensor | None = None  # [T] float64: losses of each task's first steps
        self._counts: Tensor | None = None  # [T]: how many of them there were

    def __repr__(self) -> str:
        return f"GradNorm(alpha={self.alpha:g}, start={self.start})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the weights `L̄ r_t^α / ‖g_t‖` as `[N, T]`."""
        relative = self._relative(context).to(gram)
        length = lengths(gram)
        return relative_rates(relative, length > 0) ** self.alpha * balancing_factors(length)

    def state_dict(self) -> dict[str, Any]:
        """The arguments, and where each task started."""
        started = None if self._sums is None or self._counts is None else [self._sums.clone(), self._counts.clone()]
        return {"alpha": self.alpha, "start": self.start, "started": started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if (state["alpha"], state["start"]) != (self.alpha, self.start):
            found = f"alpha={state['alpha']:g}, start={state['start']}"
            raise ValueError(f"The state should be for {self!r}. Found one for {found}.")
        self._sums, self._counts = (None, None) if state["started"] is None else (t.clone() for t in state["started"])

    def _relative(self, context: RuleContext) -> Tensor:
        """`L̃ [T]`: losses relative to their start, which moves in the first steps; 1 for a task without loss."""
        losses = _checked(context)
        if self._sums is None or self._counts is None:
            self._sums, self._counts = torch.zeros_like(losses), torch.zeros_like(losses)
        moves = losses.isfinite() & (self._counts < self.start)
        self._sums += torch.where(moves, losses, 0.0)
        self._counts += moves
        started = self._sums / self._counts.clamp_min(1)
        # A task that started at 0 has nothing to learn; it counts as one that stands where it started.
        known = losses.isfinite() & (started > 0)
        return torch.where(known, losses / torch.where(known, started, 1.0), 1.0)


def relative_rates(relative: Tensor, there: Tensor) -> Tensor:
    """`r_t = L̃_t / mean(L̃)`: L̃ `[T]`, tasks that are there `[N, T]` → `[N, T]`; 1 where all L̃ are 0."""
    mean = (relative * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
    return torch.where(mean > 0, relative / torch.where(mean > 0, mean, 1.0), 1.0)


def _checked(context: RuleContext) -> Tensor:
    """The losses as `[T]` float64.

    Raises:
        RuleError: One is negative.
    """
    assert context.losses is not None, "the engine gives losses to a rule that needs them"
    negative = (context.losses < 0).nonzero()
    if len(negative):
        task = int(negative[0])
        raise refused(
            context.tasks[task],
            float(context.losses[task]),
            "losses of at least 0: `gradnorm` compares them with where they started",
            "add a constant to the loss, so that 0 is the best that can be reached, or take `balanced`",
        )
    return context.losses.double()
