"""MoCo: the common descent direction of MGDA, on running means of the gradients.

Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach", ICLR 2023,
arXiv 2210.12624, Algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.balanced import lengths
from ortholora.engine.rules.base import RuleContext, memory_of
from ortholora.engine.rules.simplex import Shares, onto_simplex


class MoCo:
    """Follow `T Σ_t λ_t y_t` with running means `y_t` and shares λ that seek the shortest such vector.

    The paper's Algorithm 1: `y ← y − β (y − g)`; `λ ← Π(λ − γ (YᵀY + ρ I) λ)`, with Π the projection onto the simplex;
    the update is `Y λ`. Here β and γ do not shrink, means are corrected for their start at zero, each block has shares
    of its own (`block="all"` is the paper), `YᵀY` is divided by the mean squared length of the `y_t`, so that γ has no
    unit, and shares add up to the number of tasks, so that equal shares of equal gradients give their sum.

    Tasks without rows in a step take no part in it and keep their mean and share. A single task gets its plain
    gradient, as under every rule.

    Args:
        beta: β in (0, 1), the step of the means.
        gamma: γ > 0, the step of the shares.
        rho: ρ ≥ 0, which draws the shares together.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, beta: float = 0.1, gamma: float = 0.1, rho: float = 0.0) -> None:
        if not (0 < beta < 1 and math.isfinite(gamma) and gamma > 0 and math.isfinite(rho) and rho >= 0):
            found = f"beta={beta!r}, gamma={gamma!r}, rho={rho!r}"
            raise ValueError(f"beta should be in (0, 1), gamma above 0, and rho at least 0. Found {found}.")
        self.beta: float = float(beta)
        self.gamma: float = float(gamma)
        self.rho: float = float(rho)
        self.memory: float = 1 - self.beta
        memory_of(self)
        self._shares = Shares()

    def __repr__(self) -> str:
        return f"MoCo(beta={self.beta:g}, gamma={self.gamma:g}, rho={self.rho:g})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return weights `[N, 2T]`: 0 for the current gradients, `T λ_t` for the means."""
        count = len(context.tasks)
        weights = gram.new_zeros(gram.shape[:2])
        if count == 1:
            weights[:, 0] = 1
            return weights
        squared = lengths(gram)[:, count:].square() * context.present.to(gram.device)
        there = squared > 0
        number = there.sum(1, keepdim=True)
        size = squared.sum(1, keepdim=True) / number.clamp_min(1)
        means = gram[:, count:, count:] / torch.where(size > 0, size, 1.0).unsqueeze(2)
        share = self._shares.among(there)
        slope = torch.einsum("nst,nt->ns", means, share) + self.rho * share
        share = onto_simplex(share - self.gamma * slope, there)
        self._shares.keep(share, there)
        weights[:, count:] = number * share
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The arguments and the shares. (The engine keeps the means.)"""
        return {"arguments": [self.beta, self.gamma, self.rho], "shares": self._shares.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if state["arguments"] != [self.beta, self.gamma, self.rho]:
            raise ValueError(f"The state should be for {self!r}. Found one for {MoCo(*state['arguments'])!r}.")
        self._shares.load_state_dict(state["shares"])
