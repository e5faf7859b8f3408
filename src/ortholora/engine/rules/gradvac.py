"""Gradient Vaccine: pull each pair of tasks up to its usual cosine.

Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual Models",
ICLR 2021, arXiv 2010.05874, Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.ortho import cached_pieces, draw_visits

#: Cosines of at most this are aimed at: the correction has no bound as the target goes to 1.
MOST = 0.999


class GradVac:
    """Raise the cosine of a task's gradient with each other one to the pair's usual cosine `φ̂`, where it is lower.

    For each task i: `h = g_i`; for the other tasks j in random order: `φ = cos(h, g_j)`; where `φ < φ̂_ij`, equation 2:

        h ← h + ‖h‖ (φ̂ √(1 − φ²) − φ √(1 − φ̂²)) / (‖g_j‖ √(1 − φ̂²)) · g_j

    and then, equation 3, `φ̂_ij ← (1 − β) φ̂_ij + β φ`. The update is `Σ_i h`. `φ̂` starts at 0, where this is
    `Ortho`'s step; each block has its own (the paper compares several granularities).

    Args:
        beta: β in (0, 1). The paper's is 0.01.

    Raises:
        ValueError: β is out of range.
    """

    def __init__(self, beta: float = 0.01) -> None:
        if not 0 < beta < 1:
            raise ValueError(f"beta should be in (0, 1). Found {beta!r}.")
        self.beta: float = float(beta)
        self._targets: Tensor | None = None  # φ̂ [N, T, T]

    def __repr__(self) -> str:
        return f"GradVac(beta={self.beta:g})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the combinations `[N, T, T]`; row i holds the coefficients of what replaces `g_i`."""
        order = draw_visits(gram, context.generator)
        if self._targets is None:
            self._targets = torch.zeros_like(gram)
        self._targets = self._targets.to(gram.device)
        return torch.cat([vaccinate(gram[p], order[p], self._targets[p], self.beta) for p in cached_pieces(gram)])

    def state_dict(self) -> dict[str, Any]:
        """β, and the usual cosines of every block and pair."""
        return {"beta": self.beta, "targets": None if self._targets is None else self._targets.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of another β.
        """
        if state["beta"] != self.beta:
            raise ValueError(f"The state should be for {self!r}. Found one for beta={state['beta']:g}.")
        self._targets = None if state["targets"] is None else state["targets"].clone()


def vaccinate(gram: Tensor, order: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Run the corrections of some blocks and all their tasks at once.

    Args:
        gram: `[N, T, T]`.
        order: `[N, T, T - 1]`: the order in which task i visits the others.
        targets: `φ̂ [N, T, T]`; moved in place.
        beta: β.

    Returns:
        Coefficients `[N, T, T]` of every `h_i`.
    """
    blocks, tasks, _ = gram.shape
    rows, usual = gram.reshape(blocks * tasks, tasks), targets.view(blocks * tasks, tasks)
    norms = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().flatten()
    first = torch.arange(0, blocks * tasks, tasks, device=gram.device).repeat_interleave(tasks)
    coefficients = torch.eye(tasks, dtype=gram.dtype, device=gram.device).repeat(blocks, 1)
    inner, squared = rows.clone(), norms.square()  # ⟨h_i, g_k⟩ and ‖h_i‖²
    for j in order.reshape(blocks * tasks, -1).T.contiguous():
        at, dot = j.unsqueeze(1), inner.gather(1, j.unsqueeze(1)).squeeze(1)
        norm, length = norms[first + j], squared.sqrt()
        target = usual.gather(1, at).squeeze(1)
        seen = (norm > 0) & (length > 0) & dot.isfinite()
        cosine = torch.where(seen, dot / torch.where(seen, length, 1.0) / torch.where(seen, norm, 1.0), 0.0).clamp(
            -1, 1
        )
        amount = torch.where(seen & (cosine < target), correction(cosine, target) * length, 0.0)
        amount = amount / torch.where(norm > 0, norm, 1.0)
        coefficients.scatter_add_(1, at, amount.unsqueeze(1))
        squared = (squared + amount * (2 * dot + amount * norm.square())).clamp_min(0)
        inner.addcmul_(rows.index_select(0, first + j), amount.unsqueeze(1))
        usual.scatter_(1, at, torch.where(seen, (1 - beta) * target + beta * cosine, target).unsqueeze(1))
    return coefficients.view(blocks, tasks, tasks)


def correction(cosine: Tensor, target: Tensor) -> Tensor:
    """`(φ̂ √(1 − φ²) − φ √(1 − φ̂²)) / √(1 − φ̂²)`: what is added of `g_j / ‖g_j‖`, over `‖h‖`."""
    target = target.clamp(-MOST, MOST)
    return target * ((1 - cosine.square()) / (1 - target.square())).sqrt() - cosine
