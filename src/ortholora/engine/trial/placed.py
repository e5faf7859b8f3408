"""Layers whose rows the data puts into place: aligned in one batch, they need not be in the next of the same shape.

Images of a vision-language model are such: their features are scattered into the rows of text that ask for them. With
one image a row all looks well, and with the next batch's 2, 0, 1, 1 it is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def reached(outputs: Iterable[Tensor]) -> set[Any]:
    """The nodes of the graph that the outputs come from, but by no way through a scatter by mask.

    Args:
        outputs: Outputs of the model.
    """
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    found: set[Any] = set(waiting)
    while waiting:
        for node in _sources(waiting.pop()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _sources(node: Any) -> list[Any]:
    """The nodes behind one, without what it scatters into rows that a mask names."""
    nodes = [source for source, _ in node.next_functions]
    name = type(node).__name__
    by_mask = name == "IndexPutBackward0" and any(
        index is not None and index.dtype == torch.bool for index in node._saved_indices
    )
    if name == "MaskedScatterBackward0" or by_mask:
        nodes = nodes[:1]
    return [source for source in nodes if source is not None]
