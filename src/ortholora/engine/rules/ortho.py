"""Ortho-LoRA's rule: project every task gradient off those it conflicts with (arXiv 2601.09684).

On one block this is PCGrad (Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, Algorithm 1);
Ortho-LoRA applies it to every LoRA matrix A and B on its own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ortholora.engine.rules.base import RuleContext

#: Bits of a task's index in a sort key: up to four billion tasks.
INDEX_BITS = 32

#: Inner products that are worked on at a time (1 MiB).
CACHED_NUMBERS = 2**18


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
    # The bits of positive floats are in the order of their values; the index below them rides along and breaks ties.
    # NumPy sorts whole numbers in a tenth of the time in which torch sorts floats with their places.
    packed = (keys.view(torch.int32).long() << INDEX_BITS) | torch.arange(tasks)
    return torch.from_numpy(np.sort(packed.numpy(), axis=-1))[..., :-1] & (2**INDEX_BITS - 1)


def project(gram: Tensor, order: Tensor, where: Tensor | None = None) -> Tensor:
    """Run the projections of all blocks and tasks at once.

    Args:
        gram: `[N, T, T]`.
        order: `[N, T, T - 1]`, on the same device.
        where: `[N, T, T]` bool: whether task i may be projected off task j. None: always.

    Returns:
        Coefficients `[N, T, T]` of every `h_i`.
    """
    pieces = [_projected(gram[p], order[p], None if where is None else where[p]) for p in cached_pieces(gram)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def cached_pieces(gram: Tensor) -> list[slice]:
    """As many blocks at a time as stay in a CPU's cache, because each visit passes over all of their inner products."""
    step = len(gram) if gram.is_cuda else max(1, CACHED_NUMBERS // gram[0].numel())
    return [slice(start, start + step) for start in range(0, len(gram), step)]


def _projected(gram: Tensor, order: Tensor, where: Tensor | None) -> Tensor:
    blocks, tasks, _ = gram.shape
    rows = gram.reshape(blocks * tasks, tasks)
    squared = gram.diagonal(dim1=1, dim2=2).flatten()
    inverse = torch.where(squared > 0, 1 / squared, torch.zeros_like(squared))
    first = torch.arange(0, blocks * tasks, tasks, device=gram.device).repeat_interleave(tasks)
    coefficients = torch.eye(tasks, dtype=gram.dtype, device=gram.device).repeat(blocks, 1)
    inner = rows.clone()  # row n T + i holds ⟨h_i, g_k⟩ of block n
    allowed = None if where is None else where.reshape(blocks * tasks, tasks)
    for j in order.reshape(blocks * tasks, -1).T.contiguous():  # [N T]: whom each task visits now
        at, row = j.unsqueeze(1), first + j
        amount = inner.gather(1, at).clamp_max_(0).mul_(inverse[row].unsqueeze(1))
        if allowed is not None:
            amount = torch.where(allowed.gather(1, at), amount, 0.0)
        coefficients.scatter_(1, at, -amount)
        inner.addcmul_(rows.index_select(0, row), amount, value=-1)
    return coefficients.view(blocks, tasks, tasks)
