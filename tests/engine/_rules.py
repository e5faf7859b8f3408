"""Rules of a user's own, for tests (importable as `module:attribute`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ortholora.engine import RuleContext


def first_task_only(gram: Tensor, context: RuleContext) -> Tensor:
    weights = torch.zeros(gram.shape[:2])
    weights[:, 0] = 1
    return weights


def of_wrong_shape(gram: Tensor, context: RuleContext) -> Tensor:
    return torch.ones(gram.shape[0] + 1, gram.shape[1])


class SlowlyRandom:
    """Weights that depend on every Gram seen so far and on the generator."""

    def __init__(self) -> None:
        self.seen = 0
        self.total = torch.zeros(())

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        assert context.step == self.seen
        self.seen += 1
        self.total = self.total + gram.diagonal(dim1=1, dim2=2)[:, 0].mean()
        noise = torch.rand(gram.shape[:2], generator=context.generator)
        return 1 + noise + self.total / self.seen

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.total = state["seen"], state["total"]


class Means:
    """The update is the sum of the running means."""

    def __init__(self, memory: float = 0.75) -> None:
        self.memory = memory
        self.grams: list[Tensor] = []

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        self.grams.append(gram.clone())
        count = len(context.tasks)
        weights = gram.new_zeros(gram.shape[:2])
        weights[:, count:] = 1
        return weights


class Halved:
    """The plain sum; remembers the Grams of the halves and their units."""

    halves = True

    def __init__(self) -> None:
        self.grams: list[Tensor] = []
        self.units: list[Any] = []

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        self.grams.append(gram.clone())
        self.units.append(context.halves)
        return gram.new_ones(len(gram), len(context.tasks))


not_a_rule = 3
