"""Losses whose logarithm is taken, as FAMO and DB-MTL do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ortholora.engine.losses import refused
from ortholora.engine.rules.base import RuleContext

#: A loss counts as at least this part of the task's first one. (The official codes add 1e-8 to the loss, whatever
#: its size; relative to the first loss, the floor heeds no units.) A cross-entropy of exactly 0 does happen.
FLOOR = 1e-8


class PositiveLosses:
    """Reads losses that must not be negative and keeps them off 0. What each task started with is its state.

    Args:
        rule: The rule's name, for messages.
    """

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self._first: Tensor | None = None  # [T] float64; NaN for a task without a loss so far

    def read(self, context: RuleContext) -> Tensor:
        """This step's losses as `[T]` float64, above 0; NaN for a task without a loss.

        Raises:
            RuleError: A loss is negative, or the first one of a task is 0; names the task.
        """
        assert context.losses is not None, "the engine gives losses to a rule that needs them"
        losses = context.losses.double()
        first = torch.full_like(losses, torch.nan) if self._first is None else self._first
        first = torch.where(first.isnan(), losses, first)
        for wrong, expected in ((losses < 0, "losses above 0"), (first == 0, "a first loss above 0")):
            if bool(wrong.any()):
                task = int(wrong.nonzero()[0])
                raise refused(
                    context.tasks[task],
                    float(losses[task]),
                    f"{expected}: `{self.rule}` takes logarithms",
                    "add a constant to the loss, or take `balanced`, which does not look at losses",
                )
        self._first = first
        return torch.maximum(losses, FLOOR * first)

    def state_dict(self) -> dict[str, Any]:
        """The tasks' first losses."""
        return {"first": None if self._first is None else self._first.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken."""
        self._first = None if state["first"] is None else state["first"].clone()
