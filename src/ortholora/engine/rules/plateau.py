"""Balance, and a longer gradient for tasks that still stand on the plateau they started on.

Balance alone gives each of T tasks a T-th of the step. A task whose loss has not moved yet then waits longest, because
the others' steps, which are mostly noise at small batches, shake what it has. While it waits it gets more of the step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.balanced import balancing_factors, lengths
from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.starting_losses import START_STEPS, StartingLosses

#: β of the running mean of each task's relative loss: about five steps.
SMOOTHING = 0.8


class Plateau:
    """Balance with a lift for tasks on a plateau: `g = L̄ Σ_t (w_t / w̄) g_t / ‖g_t‖` in each block.

    `w_t = 1 + (lift − 1) · clip((r_t − learning) / (stuck − learning), 0, 1)`, with `r_t` the running mean of the
    task's loss over its loss at the start: `lift` for a task that is stuck, 1 for one that learns. `w̄` is the mean over
    the tasks with a gradient in the block, so that weights shift the balance and leave the length of the update alone.
    No task ever gets less than a part 1 / (lift · T) of it.

    The source is this project's ledger (benchmarks/gaps): GradNorm's idea, that tasks which lag get longer gradients
    (Chen et al., ICML 2018), with a bound, and only until a task has begun to learn.

    Args:
        lift: At least 1. How many times the length of the others' a stuck task's gradient gets; 1 is `balanced`.
        stuck: A task is stuck while its loss is above this part of that at the start.
        learning: A task has begun to learn once its loss is below this part of that at the start.
        start: The task's loss at the start is its mean over its first so many steps.

    Raises:
        ValueError: An argument is out of range.
    """

    scale_free_per_task = True
    needs_losses = True

    def __init__(
        self, lift: float = 4.0, stuck: float = 0.95, learning: float = 0.75, start: int = START_STEPS
    ) -> None:
        if not (math.isfinite(lift) and lift >= 1):
            raise ValueError(f"lift should be a number of at least 1. Found {lift!r}.")
        if not 0 < learning < stuck <= 1:
            raise ValueError(
                f"learning and stuck should be 0 < learning < stuck <= 1. Found {learning!r} and {stuck!r}."
            )
        self._losses = StartingLosses("plateau", start)
        self.lift: float = float(lift)
        self.stuck: float = float(stuck)
        self.learning: float = float(learning)
        self.start: int = self._losses.start
        self._running: Tensor | None = None  # [T] float64: running means of the relative losses

    def __repr__(self) -> str:
        return f"Plateau(lift={self.lift:g}, stuck={self.stuck:g}, learning={self.learning:g}, start={self.start})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the weights `L̄ (w_t / w̄) / ‖g_t‖` as `[N, T]`."""
        weight = self._lifted(self._smoothed(context)).to(gram)
        length = lengths(gram)
        there = length > 0
        mean = (weight * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
        return weight / torch.where(mean > 0, mean, 1.0) * balancing_factors(length)

    def state_dict(self) -> dict[str, Any]:
        """The arguments, where each task started, and how far each has come."""
        running = None if self._running is None else self._running.clone()
        return {**self._arguments(), "started": self._losses.state(), "running": running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        found = {key: state[key] for key in self._arguments()}
        if found != self._arguments():
            shown = ", ".join(f"{key}={value:g}" for key, value in found.items())
            raise ValueError(f"The state should be for {self!r}. Found one for {shown}.")
        self._losses.restore(state["started"])
        self._running = None if state["running"] is None else state["running"].clone()

    def _arguments(self) -> dict[str, float]:
        return {"lift": self.lift, "stuck": self.stuck, "learning": self.learning, "start": self.start}

    def _smoothed(self, context: RuleContext) -> Tensor:
        """`r [T]`: the running means with this step in them; those of tasks without a loss as they were."""
        relative = self._losses.relative(context)
        if self._running is None:
            self._running = torch.ones_like(relative)  # where every task starts
        assert context.losses is not None, "the engine gives losses to a rule that needs them"
        moved = SMOOTHING * self._running + (1 - SMOOTHING) * relative
        self._running = torch.where(context.losses.isfinite(), moved, self._running)
        return self._running

    def _lifted(self, relative: Tensor) -> Tensor:
        """`w [T]`: 1 for a task that learns, `lift` for one that is stuck, in between a straight line."""
        part = ((relative - self.learning) / (self.stuck - self.learning)).clamp(0, 1)
        return 1 + (self.lift - 1) * part
