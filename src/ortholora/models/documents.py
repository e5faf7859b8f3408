"""Whether a model keeps the documents of one padding-free row apart: if not, no gradient belongs to one task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: What may cross over, relative to what a change inside of the document does; kernels of half precision round more.
_LEAK = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_LEAK = 5e-2


def keeps_documents_apart(run: Callable[[list[list[int]]], Tensor], dtype: torch.dtype) -> bool:
    """Change the first of two documents and see whether the second one's outputs change.

    Args:
        run: From documents of token ids, packed into one row, to outputs `[S, ...]` of that row.
        dtype: Precision that the model computes in.

    Returns:
        Whether they stay as they are. The scale is what the same change inside of the document does.
    """
    first, second = [5, 6, 7, 5, 6], [6, 5, 7, 6, 5, 7]
    start = len(first)
    with torch.no_grad():
        before = run([first, second])[start:].float()
        other = run([[7, 5, 5, 6, 7], second])[start:].float()
        control = run([first, [5, *second[1:]]])[start:].float()
    leak, scale = (other - before).abs().max(), (control - before).abs().max()
    return bool(leak <= _LEAK.get(dtype, _HALF_LEAK) * scale)
