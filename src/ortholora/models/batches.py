"""Which rows run together in a forward that is no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def by_tokens(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, longest first: as many as fit, with their padding, into `max_tokens`.

    A row that is longer than that runs alone.
    """
    batch: list[int] = []
    for i in _longest_first(lengths):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def by_rows(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows of like length together, longest first, `batch_size` at a time."""
    order = _longest_first(lengths)
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def _longest_first(lengths: Sequence[int]) -> list[int]:
    order: list[int] = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return order
