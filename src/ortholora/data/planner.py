"""How a step's rows are cut into micro-batches.

Any cut is exact, because capture goes by row and a loss is normalised over the whole step. Cuts differ in what
they cost: rows of unlike length in one micro-batch are padded to the longest, and every micro-batch is one
more launch of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from ortholora.errors import UserError

#: Where nothing is known about model and device: about right for a small encoder on a CPU.
LAUNCH_TOKENS = 100.0

Layout = Literal["auto", "mixed", "by-length", "by-task", "padding-free"]


@dataclass(frozen=True)
class Planner:
    """Cuts the rows of a step into micro-batches.

    Attributes:
        layout: `mixed`: every micro-batch holds its share of every task; `by-length`: rows of like length
            together; `by-task`: one task in each micro-batch (and rows of like length together), which
            adapters need whose gradients cannot be split by row; `padding-free`: rows end to end, without
            padding. `auto` is `by-length`: what it costs decides how many micro-batches, down to a single mixed one.
        micro_batches: Exactly so many; None: as many as cost least.
        max_tokens: Most tokens, padding included, of a micro-batch.
        launch_tokens: What one more micro-batch costs, in tokens that could be computed in the same time. None:
            left to whoever knows model and device (`OrthoTrainer`), else `LAUNCH_TOKENS`.
        multiple: Lengths are padded to a multiple of this.
    """

    layout: Layout = "auto"
    micro_batches: int | None = None
    max_tokens: int = 16384
    launch_tokens: float | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.layout == "by-task" and self.micro_batches is not None:
            raise UserError(
                "`layout: by-task` decides itself how many micro-batches there are",
                expected="`micro_batches` without `layout: by-task`",
                found=f"{self.micro_batches} micro-batches (`mixing.micro_batches`, or accumulation steps)",
                todo="leave one of the two out",
            )

    def plan(self, lengths: Sequence[int], tasks: Sequence[int]) -> list[list[int]]:
        """Cut a step.

        Args:
            lengths: Tokens of each row.
            tasks: Task of each row.

        Returns:
            Row positions of each micro-batch, in rising order; none is empty.

        Raises:
            UserError: More micro-batches are wanted than there are rows, or they do not fit under `max_tokens`.
        """
        padded = -(-np.asarray(lengths, dtype=np.int64) // self.multiple) * self.multiple
        self._check(padded)
        if self.layout == "mixed":
            return self._mixed(padded, tasks)
        if self.layout == "padding-free":
            return self._end_to_end(np.asarray(lengths), tasks)
        if self.layout == "by-task":
            of_row = np.asarray(tasks)
            members = [np.flatnonzero(of_row == task) for task in np.unique(of_row)]
            return [cut for rows in members for cut in self._by_length(padded, rows)]
        return self._by_length(padded, np.arange(len(padded)))

    def _check(self, padded: np.ndarray) -> None:
        if self.micro_batches is not None and self.micro_batches > len(padded):
            raise UserError(
                "A step has fewer rows than micro-batches",
                expected=f"at most {len(padded)} micro-batches, the rows of a step",
                found=f"{self.micro_batches} micro-batches",
                todo="lower `mixing.micro_batches` (or the accumulation steps), or raise `mixing.rows_per_task`",
            )
        if padded.max() > self.max_tokens:
            raise UserError(
                "A row is longer than a micro-batch may be",
                expected=f"rows of at most {self.max_tokens} tokens (`mixing.max_tokens`)",
                found=f"a row of {padded.max()} tokens",
                todo="raise `mixing.max_tokens`, or lower `max_length`",
            )

    def _mixed(self, padded: np.ndarray, tasks: Sequence[int]) -> list[list[int]]:
        for pieces in self._counts(len(padded)):
            cuts = cut_evenly(tasks, pieces)
            if all(len(cut) * padded[cut].max() <= self.max_tokens for cut in cuts):
                return cuts
        raise self._too_few()

    def _by_length(self, padded: np.ndarray, rows: np.ndarray) -> list[list[int]]:
        order = rows[np.argsort(padded[rows], kind="stable")]
        if self.micro_batches is None:
            cost = LAUNCH_TOKENS if self.launch_tokens is None else self.launch_tokens
            stops = cheapest_cut(padded[order], self.max_tokens, cost)
        else:
            stops = cut_into(padded[order], self.micro_batches, self.max_tokens)
        if not stops:
            raise self._too_few()
        starts = [0, *stops[:-1]]
        return [sorted(int(row) for row in order[start:stop]) for start, stop in zip(starts, stops, strict=True)]

    def _end_to_end(self, lengths: np.ndarray, tasks: Sequence[int]) -> list[list[int]]:
        """In the order of the tasks, so that a task's tokens are contiguous; about equally many in each piece."""
        order = np.argsort(np.asarray(tasks), kind="stable")
        for pieces in self._counts(len(order)):
            cuts = cut_in_order(lengths[order], pieces)
            if all(lengths[order[cut]].sum() <= self.max_tokens for cut in cuts):
                return [[int(row) for row in order[cut]] for cut in cuts]
        raise self._too_few()

    def _counts(self, rows: int) -> Sequence[int]:
        """Numbers of micro-batches to try."""
        return range(1, rows + 1) if self.micro_batches is None else [self.micro_batches]

    def _too_few(self) -> UserError:
        return UserError(
            f"A step does not fit into {self.micro_batches} micro-batches",
            expected=f"micro-batches of at most {self.max_tokens} tokens (`mixing.max_tokens`)",
            found=f"`mixing.micro_batches: {self.micro_batches}`, which makes larger ones",
            todo="remove `mixing.micro_batches` (the tool then cuts as finely as needed), raise it, or raise "
            "`mixing.max_tokens`",
        )


def own_rows(lengths: Sequence[int], rank: int, world_size: int) -> list[int]:
    """One rank's rows of a step: dealt out from the longest on, there and back, so that all have as much to do.

    Returns:
        Row positions, in rising order. All ranks together hold every row once.
    """
    if world_size == 1:
        return list(range(len(lengths)))
    order = np.argsort(-np.asarray(lengths), kind="stable")
    place = np.arange(len(order)) % (2 * world_size)
    owner = np.minimum(place, 2 * world_size - 1 - place)
    return sorted(int(row) for row in order[owner == rank])


def cut_evenly(tasks: Sequence[int], pieces: int) -> list[list[int]]:
    """Spread the rows so that every piece holds its share of every task.

    Args:
        tasks: Task of each row.
        pieces: Number of micro-batches, at most the number of rows.

    Returns:
        Row positions of each piece, in rising order; none is empty.
    """
    order = np.argsort(np.asarray(tasks), kind="stable")
    cuts: list[list[int]] = [[] for _ in range(pieces)]
    for position, row in enumerate(order):
        cuts[position % pieces].append(int(row))
    return [sorted(cut) for cut in cuts]


def cut_in_order(lengths: np.ndarray, pieces: int) -> list[slice]:
    """Cut rows into pieces of about equally many tokens without changing their order; none is empty."""
    ends = np.cumsum(lengths)
    stops = np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces) + 1
    # Every piece holds at least one row, and leaves one for each piece after it.
    for i in range(pieces - 1):
        low = (stops[i - 1] if i else 0) + 1
        stops[i] = min(max(stops[i], low), len(lengths) - (pieces - 1 - i))
    bounds = [0, *(int(stop) for stop in stops), len(lengths)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def cheapest_cut(ordered: np.ndarray, max_tokens: int, launch_tokens: float) -> list[int]:
    """Cut rows of rising length so that padded tokens plus launches cost least.

    Exact dynamic programme over the cut points: the best cut of the first j rows ends with a piece i … j, for
    some i. O(rows²).

    Args:
        ordered: Length of each row, rising; none above `max_tokens`.
        max_tokens: Most padded tokens of a piece.
        launch_tokens: Cost of a piece, beside its padded tokens.

    Returns:
        Where the pieces stop; the last is the number of rows.
    """
    rows = len(ordered)
    best = np.zeros(rows + 1)
    back = np.zeros(rows + 1, dtype=np.int64)
    for stop in range(1, rows + 1):
        first = max(0, stop - max_tokens // int(ordered[stop - 1]))
        starts = np.arange(first, stop)
        cost = best[starts] + (stop - starts) * ordered[stop - 1] + launch_tokens
        choice = int(cost.argmin())
        best[stop], back[stop] = cost[choice], starts[choice]
    stops = [rows]
    while back[stops[-1]] > 0:
        stops.append(int(back[stops[-1]]))
    return stops[::-1]


def cut_into(ordered: np.ndarray, pieces: int, max_tokens: int) -> list[int]:
    """Cut rows of rising length into exactly so many pieces with the fewest padded tokens; O(rows² · pieces).

    Args:
        ordered: Length of each row, rising.
        pieces: Number of pieces, at most the number of rows.
        max_tokens: Most padded tokens of a piece.

    Returns:
        Where the pieces stop; nothing if so few pieces do not fit under `max_tokens`.
    """
    rows = len(ordered)
    infinite = np.iinfo(np.int64).max // 4
    # best[p][j]: fewest padded tokens for the first j rows in p pieces; back[p][j]: start of the last piece.
    best = np.full((pieces + 1, rows + 1), infinite, dtype=np.int64)
    back = np.zeros((pieces + 1, rows + 1), dtype=np.int64)
    best[0, 0] = 0
    for piece in range(1, pieces + 1):
        for stop in range(piece, rows + 1):
            starts = np.arange(piece - 1, stop)
            padded = (stop - starts) * ordered[stop - 1]
            cost = np.where(padded <= max_tokens, best[piece - 1, starts] + padded, infinite)
            choice = int(cost.argmin())
            best[piece, stop], back[piece, stop] = cost[choice], starts[choice]
    if best[pieces, rows] >= infinite:
        return []
    stops, stop = [], rows
    for piece in range(pieces, 0, -1):
        stops.append(stop)
        stop = int(back[piece, stop])
    return stops[::-1]
