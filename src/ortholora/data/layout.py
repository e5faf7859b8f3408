"""How a step's rows are cut into micro-batches. Any cut is exact; they differ in padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cut_evenly(tasks: Sequence[int], pieces: int) -> list[list[int]]:
    """Spread the rows so that every piece holds its share of every task.

    Args:
        tasks: Task of each row.
        pieces: Number of micro-batches, at most the number of rows.

    Returns:
        Row positions of each piece; none is empty.
    """
    order = np.argsort(np.asarray(tasks), kind="stable")
    cuts: list[list[int]] = [[] for _ in range(pieces)]
    for position, row in enumerate(order):
        cuts[position % pieces].append(int(row))
    return cuts


def cut_by_length(lengths: Sequence[int], pieces: int) -> list[list[int]]:
    """Put rows of like length together: the cut of the sorted rows with the fewest padded tokens.

    Exact dynamic programme over the cut points, O(rows² · pieces).

    Args:
        lengths: Tokens of each row.
        pieces: Number of micro-batches, at most the number of rows.

    Returns:
        Row positions of each piece, longest rows last; none is empty.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    ordered = np.asarray(lengths, dtype=np.int64)[order]
    rows = len(ordered)
    # best[p][j]: fewest padded tokens for the first j rows in p pieces; back[p][j]: start of the last piece.
    best = np.full((pieces + 1, rows + 1), np.iinfo(np.int64).max // 2, dtype=np.int64)
    back = np.zeros((pieces + 1, rows + 1), dtype=np.int64)
    best[0, 0] = 0
    for piece in range(1, pieces + 1):
        for stop in range(piece, rows + 1):
            starts = np.arange(piece - 1, stop)
            cost = best[piece - 1, starts] + (stop - starts) * ordered[stop - 1]
            choice = int(cost.argmin())
            best[piece, stop], back[piece, stop] = cost[choice], starts[choice]
    cuts, stop = [], rows
    for piece in range(pieces, 0, -1):
        start = int(back[piece, stop])
        cuts.append([int(row) for row in order[start:stop]])
        stop = start
    return cuts[::-1]
