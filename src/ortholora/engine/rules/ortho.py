"""Ortho-LoRA's rule: project every task gradient off those it conflicts with (arXiv 2601.09684).

On one block this is PCGrad (Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, Algorithm 1);
Ortho-LoRA applies it to every LoRA matrix A and B on its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine.rules.base import RuleContext


class Ortho:
    """Project each task gradient off the raw gradients it conflicts with.

    For each task i: `h = g_i`; for the other tasks j in random order, where `⟨h, g_j⟩ < 0`:
    `h ← h − ⟨h, g_j⟩ / ‖g_j‖² · g_j`. The update is `Σ_i h_i`.

    `h` stays a combination of the `g_t`, so it is enough to know its coefficients `c` and its inner
    products `c G` with all of them.
    """

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the combinations `[N, T, T]`; row i holds the coefficients of `h_i`."""
        return project(gram, draw_visits(gram, context.generator))


def draw_visits(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the visits for a Gram `[N, T, T]`, and bring them to its device."""
    order = visit_order(gram.shape[0], gram.shape[1], generator)
    return order.pin_memory().to(gram.device, non_blocking=True) if gram.is_cuda else order


def visit_order(blocks: int, tasks: int, generator: torch.Generator) -> Tensor:
    """Draw, for every block and task, the order in which the other tasks are visited.

    Drawn on the CPU whatever the device, so that a seed means the same everywhere.

    Returns:
        `[N, T, T - 1]` task indices; row i of a block is a permutation of the tasks without i.
    """
    keys = torch.rand(blocks, tasks, tasks, generator=generator)
    keys.diagonal(dim1=1, dim2=2).fill_(2.0)  # above every draw: a task's own index comes last
    return keys.argsort(dim=-1)[..., :-1]


def project(gram: Tensor, order: Tensor) -> Tensor:
    """Run the projections of all blocks and tasks at once.

    Args:
        gram: `[N, T, T]`.
        order: `[N, T, T - 1]`, on the same device.

    Returns:
        Coefficients `[N, T, T]` of every `h_i`.
    """
    blocks, tasks, _ = gram.shape
    coefficients = torch.eye(tasks, dtype=gram.dtype, device=gram.device).repeat(blocks, 1, 1)
    inner = gram.clone()  # inner[n, i, k] = ⟨h_i, g_k⟩
    squared_norm = gram.diagonal(dim1=1, dim2=2)
    for visit in range(order.shape[-1]):
        j = order[..., visit]
        dot = inner.gather(2, j.unsqueeze(2))
        norm = squared_norm.gather(1, j).unsqueeze(2)
        amount = torch.where((dot < 0) & (norm > 0), dot / norm, torch.zeros_like(dot))
        coefficients.scatter_add_(2, j.unsqueeze(2), -amount)
        inner -= amount * gram.gather(1, j.unsqueeze(2).expand(-1, -1, tasks))
    return coefficients
