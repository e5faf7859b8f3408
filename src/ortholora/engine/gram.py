"""The two touches of the task gradients: their Gram, and their weighted sum.

Both are one batched product per shape group; there is no loop over matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ortholora.engine.buffers import ShapeGroup

Block = Literal["matrix", "layer", "all"]


class Blocks:
    """What conflict is judged on: which matrices' inner products are added into one Gram.

    Args:
        groups: The shape groups.
        order: Every matrix's name in model order, by which blocks are numbered.
        block: `"matrix"` (the paper), `"layer"` (A and B of a layer together) or `"all"` (PCGrad on the
            whole vector).

    Attributes:
        names: Name of each of the N blocks.
    """

    def __init__(self, groups: Sequence[ShapeGroup], order: Sequence[str], block: Block) -> None:
        if block not in ("matrix", "layer", "all"):
            raise ValueError(f"block should be 'matrix', 'layer' or 'all'. Found {block!r}.")
        matrices = [matrix for group in groups for matrix in group.matrices]
        key = {"matrix": lambda m: m.name, "layer": lambda m: m.layer, "all": lambda m: "all"}[block]
        position = {name: i for i, name in enumerate(order)}
        in_order = sorted(matrices, key=lambda m: position[m.name])
        self.names = list(dict.fromkeys(key(m) for m in in_order))
        number = {name: i for i, name in enumerate(self.names)}
        self._of_matrix = torch.tensor([number[key(m)] for m in matrices])
        self._sizes = [len(group.matrices) for group in groups]

    def gram(self, stacks: Sequence[Tensor]) -> Tensor:
        """Inner products of the task gradients of every block.

        Args:
            stacks: `[n, S, numel]` float32 for each shape group.

        Returns:
            `[N, S, S]` float32, on the device of the first group.
        """
        device = stacks[0].device
        grams = torch.cat([torch.bmm(s, s.transpose(1, 2)).to(device) for s in stacks])
        result = grams.new_zeros(len(self.names), *grams.shape[1:])
        return result.index_add_(0, self._index(device), grams)

    def per_group(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Spread weights of blocks `[N, S]` over the matrices: `[n, S]` for each shape group."""
        return weights.index_select(0, self._index(weights.device)).split(self._sizes)

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


def weighted_sum(weights: Tensor, stack: Tensor) -> Tensor:
    """`Σ_s w_s g_s` of every matrix: weights `[n, S]`, stack `[n, S, numel]` → `[n, numel]`."""
    return torch.bmm(weights.unsqueeze(1).to(stack.device), stack).squeeze(1)
