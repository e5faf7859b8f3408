"""Which rows make up each optimizer step.

Every task has a stream of its rows: shuffled, and shuffled again each time it starts over, by a seed of
its own. Step s takes the next `quota[t]` rows of every stream. The streams depend on the seed and the
task's name only, so a task sees the same rows in the same order alone and among others, and a resumed
run goes on with the rows that an uninterrupted one would have taken.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from ortholora.data.encoded import RowId
from ortholora.data.layout import cut_by_length, cut_evenly
from ortholora.errors import UserError

Quota = Literal["equal", "proportional", "temperature"]
Layout = Literal["mixed", "by-length"]


def quotas(sizes: Sequence[int], rows: int, quota: Quota = "equal", temperature: float = 2.0) -> list[int]:
    """Divide the rows of a step among the tasks (largest remainders; every task gets at least one).

    Args:
        sizes: Training rows of each task.
        rows: Rows of a step.
        quota: `equal`, `proportional` to the size, or to size^(1/temperature).
        temperature: For `temperature`.

    Returns:
        Rows of each task in every step; they sum to `rows`.

    Raises:
        UserError: Fewer rows than tasks.
    """
    if rows < len(sizes):
        raise UserError(
            "A step is too small for the tasks",
            expected=f"at least {len(sizes)} rows in a step, one for each task",
            found=f"{rows} rows",
            todo="raise `mixing.rows_per_task`",
        )
    power = {"equal": 0.0, "proportional": 1.0, "temperature": 1.0 / temperature}[quota]
    shares = np.asarray(sizes, dtype=np.float64) ** power
    # One row each first; the rest by share, so that no task is starved and the total is met exactly.
    wanted = shares / shares.sum() * rows
    exact = np.maximum(wanted - 1, 0)
    exact = exact / exact.sum() * (rows - len(sizes)) if exact.sum() > 0 else exact
    result = np.floor(exact).astype(int)
    order = np.argsort(-(exact - result), kind="stable")
    result[order[: rows - len(sizes) - int(result.sum())]] += 1
    return [int(q) + 1 for q in result]


class RowStream:
    """The endless, seeded sequence of one task's rows."""

    def __init__(self, name: str, size: int, seed: int) -> None:
        self._entropy = (seed, zlib.crc32(name.encode()))
        self._size = size
        self._permutation = lru_cache(maxsize=2)(self._draw)

    def take(self, start: int, count: int) -> list[int]:
        """Rows `start … start + count` of the stream."""
        return [int(self._permutation(i // self._size)[i % self._size]) for i in range(start, start + count)]

    def _draw(self, round_: int) -> np.ndarray:
        return np.random.default_rng([*self._entropy, round_]).permutation(self._size)


class MixedBatchSampler:
    """Yields the micro-batches of every step: rows of all tasks, contiguous by task.

    Args:
        names: Names of the tasks.
        lengths: Token counts of every task's training rows.
        quota: Rows of each task in a step.
        micro_batches: Micro-batches (over all ranks) that a step is cut into.
        seed: Seed of the streams.
        layout: `mixed`: every micro-batch holds every task in its share; `by-length`: rows of like length
            together, cut so that padding is least. Both are exact, because capture goes by row.
    """

    def __init__(
        self,
        names: Sequence[str],
        lengths: Sequence[Sequence[int]],
        quota: Sequence[int],
        micro_batches: int,
        seed: int,
        layout: Layout = "mixed",
    ) -> None:
        self._streams = [RowStream(n, len(sizes), seed) for n, sizes in zip(names, lengths, strict=True)]
        self._lengths, self._quota = lengths, list(quota)
        self._micro_batches, self._layout = micro_batches, layout
        self._epoch = 0
        rows = sum(self._quota)
        if micro_batches > rows:
            raise UserError(
                "A step has fewer rows than micro-batches",
                expected=f"at most {rows} micro-batches, the rows of a step",
                found=f"{micro_batches} micro-batches (accumulation times processes)",
                todo="lower `mixing.micro_batches`, or raise `mixing.rows_per_task`",
            )
        total = sum(len(sizes) for sizes in lengths)
        self.steps_per_epoch = max(1, math.ceil(total / rows))

    def __len__(self) -> int:
        return self.steps_per_epoch * self._micro_batches

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch: epoch e holds the steps from e · steps_per_epoch on."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[RowId]]:
        first = self._epoch * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            yield from self.step(step)

    def step(self, step: int) -> list[list[RowId]]:
        """The micro-batches of one step."""
        rows = [
            (task, row)
            for task, (stream, quota) in enumerate(zip(self._streams, self._quota, strict=True))
            for row in stream.take(step * quota, quota)
        ]
        lengths = [self._lengths[task][row] for task, row in rows]
        if self._layout == "by-length":
            cuts = cut_by_length(lengths, self._micro_batches)
        else:
            cuts = cut_evenly([task for task, _ in rows], self._micro_batches)
        return [[rows[i] for i in sorted(cut)] for cut in cuts]
