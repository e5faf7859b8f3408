"""SDMGrad: MGDA near the mean gradient, on inner products that are free of noise.

Xiao et al., "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms", NeurIPS 2023,
arXiv 2305.18409, Algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.halves import whole
from ortholora.engine.rules.balanced import lengths
from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.noise_free import noise_free_gram
from ortholora.engine.rules.simplex import Shares, onto_simplex


class SDMGrad:
    """Follow `T Σ_t (w_t + λ / T) g_t / (1 + λ)` with shares w that minimise `½ ‖G w + λ g₀‖²`, `g₀` the mean gradient.

    The paper's Algorithm 1: in every step S times `w ← Π(w − β (G(ξ)ᵀ G(ξ′) w + λ G(ξ)ᵀ g₀(ξ′)))`, going on from the
    last step's w, with Π the projection onto the simplex and ξ, ξ′ independent batches: their product is unbiased.
    Then the update `(G(ζ) w + λ g₀(ζ)) / (1 + λ)` from a third batch.

    Here ξ and ξ′ are the two halves of a step, put together as in `noise_free_gram`, and the update is the step's own
    gradient, because a third batch would cost another forward. Each block has shares of its own (`block="all"` is the
    paper), β is `1 / max_s Σ_t |G_st|`, which cannot diverge, and weights add up to the number of tasks, so that equal
    gradients get their sum. Tasks without a gradient in the block take no part and keep their share.

    Args:
        lam: λ ≥ 0. 0 is MGDA by small steps; a large one is `sum`.
        steps: S.

    Raises:
        ValueError: An argument is out of range.
    """

    halves = True

    def __init__(self, lam: float = 0.3, steps: int = 20) -> None:
        if not (math.isfinite(lam) and lam >= 0) or int(steps) != steps or steps < 1:
            found = f"lam={lam!r}, steps={steps!r}"
            raise ValueError(f"lam should be at least 0, and steps a number of at least 1. Found {found}.")
        self.lam: float = float(lam)
        self.steps: int = int(steps)
        self._shares = Shares()

    def __repr__(self) -> str:
        return f"SDMGrad(lam={self.lam:g}, steps={self.steps})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return weights `[N, T]`."""
        there = lengths(whole(gram)) > 0
        if there.shape[1] == 1:
            return torch.ones_like(there, dtype=gram.dtype)
        number = there.sum(1, keepdim=True)
        inner = noise_free_gram(gram, context).masked_fill(~(there.unsqueeze(1) & there.unsqueeze(2)), 0.0)
        largest = inner.abs().sum(2).amax(1, keepdim=True)
        inner = inner / torch.where(largest > 0, largest, 1.0).unsqueeze(2)
        share, equal = self._shares.among(there), there / number.clamp_min(1)
        for _ in range(self.steps):
            slope = torch.einsum("nst,nt->ns", inner, share + self.lam * equal)
            share = onto_simplex(share - slope, there)
        self._shares.keep(share, there)
        return number * (share + self.lam * equal) / (1 + self.lam)

    def state_dict(self) -> dict[str, Any]:
        """The arguments and the shares."""
        return {"arguments": [self.lam, self.steps], "shares": self._shares.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if state["arguments"] != [self.lam, self.steps]:
            raise ValueError(f"The state should be for {self!r}. Found one for {SDMGrad(*state['arguments'])!r}.")
        self._shares.load_state_dict(state["shares"])
