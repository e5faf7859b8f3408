"""The paper's projection, but only between tasks that are surely in conflict.

This library's own. The sign of a cosine between two small batches is close to a coin flip; what is sure is its mean
over steps, against its own fluctuation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.balanced import balanced_gram, lengths
from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.ortho import draw_visits, project


class OrthoSure:
    """Project as `Ortho` does, but in each block only off tasks with which conflict is sure: `m + z se < 0`.

    m is the running mean of the pair's cosine in this block, and se its standard error. With weights
    `w_k = β^(age)` over the steps in which both tasks had a gradient there:

        m = Σ w c / Σ w        se² = Σ w (c − m)² / Σ w · Σ w² / ((Σ w)² − Σ w²)

    which is `s² Σ w² / (Σ w)²` with the unbiased variance `s²`. Before a pair's second step nothing is sure. While
    nothing is, the rule is exactly `sum`; with `z → −∞` it would be `ortho`.

    Args:
        z: z ≥ 0. How many standard errors the mean must lie below zero. 2 is wrong for about one pair in forty.
        beta: β in (0, 1), the decay.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, z: float = 2.0, beta: float = 0.98) -> None:
        if not (math.isfinite(z) and z >= 0 and 0 < beta < 1):
            raise ValueError(f"z should be at least 0, and beta in (0, 1). Found z={z!r}, beta={beta!r}.")
        self.z: float = float(z)
        self.beta: float = float(beta)
        # Σ w, Σ w², m, and Σ w (c − m)²: each [N, T, T]
        self._sums: list[Tensor] | None = None

    def __repr__(self) -> str:
        return f"OrthoSure(z={self.z:g}, beta={self.beta:g})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the combinations `[N, T, T]`; row i holds the coefficients of what replaces `g_i`."""
        visits = draw_visits(gram, context.generator)
        return project(gram, visits, self._sure(gram))

    def state_dict(self) -> dict[str, Any]:
        """The arguments and the running sums of every block and pair."""
        sums = None if self._sums is None else [total.clone() for total in self._sums]
        return {"z": self.z, "beta": self.beta, "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if (state["z"], state["beta"]) != (self.z, self.beta):
            found = f"z={state['z']:g}, beta={state['beta']:g}"
            raise ValueError(f"The state should be for {self!r}. Found one for {found}.")
        self._sums = None if state["sums"] is None else [total.clone() for total in state["sums"]]

    def _sure(self, gram: Tensor) -> Tensor:
        """Move the sums by this step, and say which pairs are surely in conflict: `[N, T, T]` bool."""
        if self._sums is None:
            self._sums = [torch.zeros_like(gram) for _ in range(4)]
        weight, square, mean, spread = (total.to(gram.device) for total in self._sums)
        length = lengths(gram)
        cosine = balanced_gram(gram, length)
        there = length > 0
        seen = there.unsqueeze(1) & there.unsqueeze(2) & cosine.isfinite()
        beta, new = torch.where(seen, self.beta, 1.0), seen.to(gram.dtype)
        weight, square, spread = beta * weight + new, beta.square() * square + new, beta * spread
        # West 1979: the mean moves by its share of the difference, and no large numbers are subtracted.
        difference = torch.where(seen, cosine - mean, 0.0)
        moved = mean + difference / weight.clamp_min(1)
        spread = spread + difference * torch.where(seen, cosine - moved, 0.0)
        self._sums = [weight, square, moved, spread]
        # Σ w² = (Σ w)² while one step was seen; a pair that pauses keeps what it had.
        rest = weight.square() - square
        known = rest > 1e-3 * weight.square()
        error = (spread / weight.clamp_min(1) * square / torch.where(known, rest, 1.0)).clamp_min(0).sqrt()
        return known & (moved + self.z * error < 0)
