"""Layers whose rows the data puts into place: aligned in one batch, they need not be in the next of the same shape.

Images of a vision-language model are such: their features are scattered into the rows of text that ask for them. With
one image a row all looks well, and with the next batch's 2, 0, 1, 1 it is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def reached(outputs: Iterable[Tensor], by_mask: bool = False) -> set[Any]:
    """The nodes of the graph that the outputs come from.

    Args:
        outputs: Outputs of the model.
        by_mask: Also by way of a scatter by mask.
    """
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    found: set[Any] = set(waiting)
    while waiting:
        for node in _sources(waiting.pop(), by_mask):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _sources(node: Any, by_mask: bool) -> list[Any]:
    """The nodes behind one; unless told otherwise, without what it scatters into rows that a mask names."""
    nodes = [source for source, _ in node.next_functions]
    if not by_mask and _scatters_by_mask(node):
        nodes = nodes[:1]
    return [source for source in nodes if source is not None]


def _scatters_by_mask(node: Any) -> bool:
    name = type(node).__name__
    return name == "MaskedScatterBackward0" or (
        name == "IndexPutBackward0"
        and any(index is not None and index.dtype == torch.bool for index in node._saved_indices)
    )
