"""GradNorm's balance, solved in every step: tasks that have learned less get longer gradients.

Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML 2018.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.balanced import balancing_factors, lengths
from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.starting_losses import START_STEPS, StartingLosses


class GradNorm:
    """Give every task's gradient the length `L̄ r_t^α` in each block, and sum: `g = L̄ Σ_t r_t^α g_t / ‖g_t‖`.

    That is equation 2 of the paper with an equality sign: its weights follow by gradient steps what is solved here
    exactly, in each block and step. `r_t = L̃_t / mean(L̃)` is the task's relative inverse training rate, with
    `L̃_t` its loss over its loss at the start; means are taken over the tasks with a gradient in the block.

    Args:
        alpha: α ≥ 0. How strongly tasks that lag are preferred; 0 is `balanced`.
        start: The task's loss at the start is its mean over its first so many steps (the paper takes one).

    Raises:
        ValueError: An argument is out of range.
    """

    scale_free_per_task = True
    needs_losses = True

    def __init__(self, alpha: float = 1.0, start: int = START_STEPS) -> None:
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha should be a number of at least 0. Found {alpha!r}.")
        self._losses = StartingLosses("gradnorm", start)
        self.alpha: float = float(alpha)
        self.start: int = self._losses.start

    def __repr__(self) -> str:
        return f"GradNorm(alpha={self.alpha:g}, start={self.start})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the weights `L̄ r_t^α / ‖g_t‖` as `[N, T]`."""
        relative = self._losses.relative(context).to(gram)
        length = lengths(gram)
        return relative_rates(relative, length > 0) ** self.alpha * balancing_factors(length)

    def state_dict(self) -> dict[str, Any]:
        """The arguments, and where each task started."""
        return {"alpha": self.alpha, "start": self.start, "started": self._losses.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if (state["alpha"], state["start"]) != (self.alpha, self.start):
            found = f"alpha={state['alpha']:g}, start={state['start']}"
            raise ValueError(f"The state should be for {self!r}. Found one for {found}.")
        self._losses.restore(state["started"])


def relative_rates(relative: Tensor, there: Tensor) -> Tensor:
    """`r_t = L̃_t / mean(L̃)`: L̃ `[T]`, tasks that are there `[N, T]` → `[N, T]`; 1 where all L̃ are 0."""
    mean = (relative * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
    return torch.where(mean > 0, relative / torch.where(mean > 0, mean, 1.0), 1.0)
