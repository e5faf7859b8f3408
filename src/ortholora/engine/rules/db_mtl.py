"""DB-MTL: running means of the gradients of log losses, all as long as the longest.

Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, arXiv 2308.12029, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.balanced import lengths
from ortholora.engine.rules.base import RuleContext, memory_of
from ortholora.engine.rules.positive_losses import PositiveLosses


class DbMtl:
    """Sum the running means of `∇ log L_t`, all as long as the longest: `g = α Σ_t m_t / ‖m_t‖`, `α = max_t ‖m_t‖`.

    `m_t` is the mean of `g_t / L_t` with decay β, corrected for its start at zero (the paper starts with the
    first gradient as it is multiplied by 1 − β; the directions are the same). The paper scales the
    gradient of all shared parameters; here each block is scaled on its own (`block="all"` is the paper). Tasks without
    rows in a step take no part in it. A single task gets its plain gradient, as under every rule.

    Args:
        beta: Decay of the running means, in (0, 1). (The paper tunes it for each benchmark.)

    Raises:
        ValueError: β is out of range.
    """

    scale_free_per_task = True
    needs_losses = True

    def __init__(self, beta: float = 0.9) -> None:
        self.memory: float = float(beta)
        memory_of(self)
        self._losses = PositiveLosses("db-mtl")

    def __repr__(self) -> str:
        return f"DbMtl(beta={self.memory:g})"

    def memory_factors(self, context: RuleContext) -> Tensor:
        """`1 / L_t` as `[T]` float32, 0 for a task without a loss: `∇ log L = ∇L / L`."""
        return (1 / self._losses.read(context)).nan_to_num(0.0).float()

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return weights `[N, 2T]`: 0 for the current gradients, `α / ‖m_t‖` for the means."""
        count = len(context.tasks)
        weights = gram.new_zeros(gram.shape[:2])
        if count == 1:
            weights[:, 0] = 1
            return weights
        length = lengths(gram)[:, count:] * context.present.to(gram.device)
        there = length > 0
        longest = length.amax(1, keepdim=True)
        weights[:, count:] = torch.where(there, longest / torch.where(there, length, 1.0), 0.0)
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The decay, and the tasks' first losses. (The engine keeps the means.)"""
        return {"beta": self.memory, "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of another decay.
        """
        if state["beta"] != self.memory:
            raise ValueError(f"The state should be for {self!r}. Found one for beta={state['beta']:g}.")
        self._losses.load_state_dict(state["losses"])
