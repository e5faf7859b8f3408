"""The two touches of the task gradients: their Gram, and their weighted sum.

Both are one batched product per shape group; there is no loop over matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.layers import Matrix

#: Tasks whose inner products with all later ones are taken in one product.
STRIP = 8

#: Elements of half-precision task gradients that are copied to float32 at a time (64 MiB).
COPIED_ELEMENTS = 2**24

Block = Literal["matrix", "layer", "all"]
#: What the matrices of one block have in common; also the block's name.
_KEYS: dict[Block, Callable[[Matrix], str]] = {
    "matrix": lambda matrix: matrix.name,
    "layer": lambda matrix: matrix.layer,
    "all": lambda matrix: "all",
}


class Blocks:
    """What conflict is judged on: which matrices' inner products are added into one Gram.

    Args:
        groups: The shape groups.
        order: Every matrix's name in model order, by which blocks are numbered.
        block: `"matrix"` (the paper), `"layer"` (A and B of a layer together) or `"all"` (PCGrad on the
            whole vector).

    Attributes:
        block: As given.
        names: Name of each of the N blocks.
    """

    def __init__(self, groups: Sequence[ShapeGroup], order: Sequence[str], block: Block) -> None:
        if block not in ("matrix", "layer", "all"):
            raise ValueError(f"block should be 'matrix', 'layer' or 'all'. Found {block!r}.")
        self.block = block
        matrices = [matrix for group in groups for matrix in group.matrices]
        key = _KEYS[block]
        position = {name: i for i, name in enumerate(order)}
        in_order = sorted(matrices, key=lambda m: position[m.name])
        self.names: list[str] = list(dict.fromkeys(key(m) for m in in_order))
        number = {name: i for i, name in enumerate(self.names)}
        self._of_matrix = torch.tensor([number[key(m)] for m in matrices])
        self._sizes = [len(group.matrices) for group in groups]

    def gram(self, grams: Tensor) -> Tensor:
        """Add the inner products of every block's matrices: `[Σ n, S, S]`, group after group → `[N, S, S]`."""
        result = grams.new_zeros(len(self.names), *grams.shape[1:])
        return result.index_add_(0, self._index(grams.device), grams)

    def per_group(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Spread weights of blocks `[N, S]` over the matrices: `[n, S]` for each shape group."""
        return weights.index_select(0, self._index(weights.device)).split(self._sizes)

    def largest(self, values: Tensor) -> Tensor:
        """The largest of the values of every block's matrices: `[Σ n]`, group after group → `[N]`."""
        result = values.new_zeros(len(self.names))
        return result.scatter_reduce_(0, self._index(values.device), values, "amax")

    def _index(self, device: torch.device) -> Tensor:
        if self._of_matrix.device != device:
            self._of_matrix = self._of_matrix.to(device)
        return self._of_matrix


def unit_trace(gram: Tensor) -> Tensor:
    """Divide every block's Gram by its trace (a block of zeros stays zero).

    A rule then sees the same numbers whether gradients are 1e-10 or 1.
    """
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    return gram / torch.where(trace > 0, trace, torch.ones_like(trace))[:, None, None]


def inner_products(stack: Tensor, factors: Tensor | None = None) -> Tensor:
    """`⟨g_s, g_t⟩` of every matrix: stack `[n, S, numel]` → `[n, S, S]`, accumulated in float32.

    With `factors` `[n]`, of the gradients times those.

    Only strips on and right of the diagonal are computed; the rest is their mirror image. With many tasks
    that is almost half the work.
    """
    matrices, size, _ = stack.shape
    gram = stack.new_empty((matrices, size, size), dtype=torch.float32)
    for rows in _pieces(stack):
        part = stack[rows].float()
        if factors is not None:
            part = part * factors[rows, None, None]
        for start in range(0, size, STRIP):
            stop = min(start + STRIP, size)
            strip = torch.bmm(part[:, start:stop], part[:, start:].transpose(1, 2))
            gram[rows, start:stop, start:] = strip
            if stop < size:
                gram[rows, stop:, start:stop] = strip[:, :, stop - start :].transpose(1, 2)
    return gram


def weighted_sum(weights: Tensor, stack: Tensor) -> Tensor:
    """`Σ_s w_s g_s` of every matrix: weights `[n, S]`, stack `[n, S, numel]` → `[n, numel]` float32."""
    weights = weights.unsqueeze(1).to(stack.device)
    pieces = [torch.bmm(weights[rows], stack[rows].float()).squeeze(1) for rows in _pieces(stack)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _pieces(stack: Tensor) -> list[slice]:
    """All matrices at once in float32; a few at a time where a float32 copy has to be made first."""
    count, size, numel = stack.shape
    step = count if stack.dtype == torch.float32 else max(1, COPIED_ELEMENTS // (size * numel))
    return [slice(start, start + step) for start in range(0, count, step)]
