"""Balance: every task's gradient gets one length in each block, so that no task drowns the others.

`balanced` sums the gradients of equal length. `balanced-ortho` runs the paper's projection on them first.

Multiplying a task's loss by a positive number changes the direction of no block's update (law 10).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.ortho import draw_visits, project


class Balanced:
    """Give every task's gradient the mean length `L̄` in each block, and sum: `g = L̄ Σ_t g_t / ‖g_t‖`.

    `L̄` is the mean of the lengths of the tasks that have a gradient. One task, or tasks of equal lengths,
    therefore get the plain sum. Absent and zero gradients are left out.
    """

    scale_free_per_task = True

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the weights `L̄ / ‖g_t‖` as `[N, T]`."""
        return balancing_factors(lengths(gram))


class BalancedOrtho:
    """Balance as `Balanced` does, then project as `Ortho` does, with the same visit orders.

    With `u_t = L̄ g_t / ‖g_t‖`: for each task i, `h = u_i`; for the other tasks j in random order, where
    `⟨h, u_j⟩ < 0`: `h ← h − ⟨h, u_j⟩ / ‖u_j‖² · u_j`. The update is `Σ_i h_i`.
    """

    scale_free_per_task = True

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the combinations `[N, T, T]`; row i holds the coefficients of `h_i` in the `g_t`."""
        length = lengths(gram)
        coefficients = project(balanced_gram(gram, length), draw_visits(gram, context.generator))
        return coefficients * balancing_factors(length).unsqueeze(1)


def lengths(gram: Tensor) -> Tensor:
    """Lengths of the task gradients: Gram `[N, T, T]` of unit trace → `[N, T]`.

    A length below 1e-19 of the block's is 0, and so is that of an absent task: its square is below what
    float32 holds at full precision.
    """
    squared = gram.diagonal(dim1=1, dim2=2)
    return torch.where(squared >= torch.finfo(gram.dtype).tiny, squared, torch.zeros_like(squared)).sqrt()


def balancing_factors(length: Tensor) -> Tensor:
    """`L̄ / ‖g_t‖` for lengths `[N, T]`, and 0 for a gradient without length."""
    there = (length > 0).sum(1, keepdim=True).clamp_min(1)
    return length.sum(1, keepdim=True) / there * _inverse(length)


def balanced_gram(gram: Tensor, length: Tensor) -> Tensor:
    """The Gram `D G D` of gradients of length 1 (`D = diag(1 / ‖g_t‖)`): their cosines, 0 for a missing one."""
    inverse = _inverse(length)
    # One factor after the other: their product leaves the range of float32 when both gradients are tiny.
    result = gram * inverse.unsqueeze(1) * inverse.unsqueeze(2)
    result.diagonal(dim1=1, dim2=2).copy_(length > 0)
    return result


def _inverse(length: Tensor) -> Tensor:
    return torch.where(length > 0, 1 / length, torch.zeros_like(length))
