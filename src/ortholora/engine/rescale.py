"""Inner products of gradients so small or so large that float32 cannot hold their squares.

Gradients of 1e-22 have squares of 1e-44, which are zero; those of 1e20 have infinite ones. A rule would see nothing, or
nonsense. The blocks that it happens to are multiplied by a power of two first. Weights do not change by that, nor do
cosines. To find out costs a look at the Gram, which is free on the CPU; with an accelerator it is done in the checked
steps, and what they find holds until the next of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine.distributed import Reduced
from ortholora.engine.gram import Blocks

#: Squares below the first, and sums of them above the second, lie too near to the ends of float32 to be added up.
_FLOOR, _CEILING = 1e-30, 1e36

#: Powers of two. The largest element of all may lie between minus and plus the first; that of a block may be smaller
#: by as much, but not below the second. No factor exceeds the third, which float32 can still hold.
_EXPONENT, _LOWEST, _MOST = 30, -50, 120


class SafeGram:
    """Takes the Gram of every block, and rescales the blocks that need it.

    Args:
        blocks: What the inner products of matrices are added up into.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._on = False

    def take(self, reduced: Reduced, checked: bool) -> Tensor:
        """`[N, S, S]` inner products; where float32 could not hold them, of gradients times a power of two.

        Args:
            reduced: The task gradients.
            checked: This step may be waited for.
        """
        if self._on:
            return self._rescaled(reduced, checked)
        gram = self._blocks.gram(reduced.inner_products())
        if not (checked or gram.device.type == "cpu"):
            return gram
        squares = gram.diagonal(dim1=1, dim2=2)
        beyond = ~(squares.sum() < _CEILING) | ((squares > 0) & (squares < _FLOOR)).any()
        return self._rescaled(reduced, checked) if bool(beyond) or self._hides_something(reduced, squares) else gram

    def _rescaled(self, reduced: Reduced, checked: bool) -> Tensor:
        factors = _factors(self._blocks.largest(reduced.largest()))
        if checked or factors.device.type == "cpu":
            self._on = bool((factors != 1).any())
        return self._blocks.gram(reduced.inner_products(self._blocks.per_group(factors)))

    def _hides_something(self, reduced: Reduced, squares: Tensor) -> bool:
        """Whether all squares of a block are zero, but not its gradients."""
        zero = (squares == 0).all(1)
        if not bool(zero.any()):
            return False
        return bool((reduced.largest(self._blocks.per_group(zero)) > 0).any())


def _factors(largest: Tensor) -> Tensor:
    """A power of two for each block `[N]`, by the largest element of its gradients.

    One for all blocks, so that they keep their sizes against each other; and another one for blocks that are then too
    small still, and that stay negligible beside the largest.
    """
    counts = largest.isfinite() & (largest > 0)
    _, exponent = torch.frexp(torch.where(counts, largest, 1.0))
    top = torch.where(counts, exponent, -999).amax()
    common = torch.where(top.abs() > _EXPONENT, -top, 0)
    lowest = (top + common - _EXPONENT).clamp_min(_LOWEST)
    shift = (common + (lowest - exponent - common).clamp_min(0)).clamp(-_MOST, _MOST)
    return torch.where(counts, torch.ldexp(torch.ones_like(largest), shift), 1.0)
