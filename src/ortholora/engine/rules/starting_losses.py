"""How far each task has come: its loss over its loss at the start, for rules that look at progress."""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine.losses import refused
from ortholora.engine.rules.base import RuleContext

#: Steps whose mean loss is where a task started. The loss of one small batch is mostly noise.
START_STEPS = 10


class StartingLosses:
    """Reads losses relative to their mean over each task's first steps, which are its state.

    Args:
        rule: The rule's name, for messages.
        start: So many first steps.

    Raises:
        ValueError: `start` is no number of steps.
    """

    def __init__(self, rule: str, start: int = START_STEPS) -> None:
        if int(start) != start or start < 1:
            raise ValueError(f"start should be a number of steps of at least 1. Found {start!r}.")
        self.rule: str = rule
        self.start: int = int(start)
        self._sums: Tensor | None = None  # [T] float64: losses of each task's first steps
        self._counts: Tensor | None = None  # [T]: how many of them there were

    def relative(self, context: RuleContext) -> Tensor:
        """`L̃ [T]` float64: losses relative to their start, which moves in the first steps; 1 for a task without loss.

        Raises:
            RuleError: A loss is negative; names the task.
        """
        losses = self._checked(context)
        if self._sums is None or self._counts is None:
            self._sums, self._counts = torch.zeros_like(losses), torch.zeros_like(losses)
        moves = losses.isfinite() & (self._counts < self.start)
        self._sums += torch.where(moves, losses, 0.0)
        self._counts += moves
        started = self._sums / self._counts.clamp_min(1)
        # A task that started at 0 has nothing to learn; it counts as one that stands where it started.
        known = losses.isfinite() & (started > 0)
        return torch.where(known, losses / torch.where(known, started, 1.0), 1.0)

    def state(self) -> list[Tensor] | None:
        """Sums and counts of the first losses; None before the first step."""
        return None if self._sums is None or self._counts is None else [self._sums.clone(), self._counts.clone()]

    def restore(self, state: list[Tensor] | None) -> None:
        """Continue where `state()` was taken."""
        self._sums, self._counts = (None, None) if state is None else (part.clone() for part in state)

    def _checked(self, context: RuleContext) -> Tensor:
        assert context.losses is not None, "the engine gives losses to a rule that needs them"
        negative = (context.losses < 0).nonzero()
        if len(negative):
            task = int(negative[0])
            raise refused(
                context.tasks[task],
                float(context.losses[task]),
                f"losses of at least 0: `{self.rule}` compares them with where they started",
                "add a constant to the loss, so that 0 is the best that can be reached, or take `balanced`",
            )
        return context.losses.double()
