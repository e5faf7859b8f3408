"""Which rows make up each optimizer step.

Every task has a stream of its rows: shuffled, and shuffled again each time it starts over, by a seed of
its own. Step s takes the next `quota[t]` rows of every stream. The streams depend on the seed and the
task's name only, so a task sees the same rows in the same order alone and among others, and a resumed
run goes on with the rows that an uninterrupted one would have taken.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np

from ortholora.data.encoded import MicroBatch
from ortholora.data.planner import Planner, own_rows
from ortholora.errors import UserError

Quota = Literal["equal", "proportional", "temperature"]


def quotas(
    sizes: Sequence[int],
    rows: int,
    quota: Quota = "equal",
    temperature: float = 2.0,
    lengths: Sequence[float] | None = None,
) -> list[int]:
    """Divide the rows of a step among the tasks (largest remainders; every task gets at least one).

    Args:
        sizes: Training rows of each task.
        rows: Rows of a step.
        quota: `equal`, `proportional` to the size, or to size^(1/temperature).
        temperature: For `temperature`.
        lengths: Mean tokens of a row of each task, to divide tokens: the rows then have, on average, tokens in the
            shares that `quota` says, and the size of a task is its tokens. None: rows are divided.

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
    per_row = np.ones(len(sizes)) if lengths is None else np.asarray(lengths, dtype=np.float64)
    shares = (np.asarray(sizes, dtype=np.float64) * per_row) ** power / per_row
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


class StepSampler:
    """Yields every step's rows, cut into micro-batches; in each, rows are contiguous by task.

    Args:
        names: Names of the tasks.
        lengths: Token counts of every task's training rows.
        quota: Rows of each task in a step.
        seed: Seed of the streams.
        planner: Cuts a step into micro-batches.
        accumulate: Yield every micro-batch by itself, this many a step (accumulation outside of the step),
            instead of all of a step at once.
        rank: Which share of every step to yield.
        world_size: Number of shares.
        weights: What every row counts in its task's mean loss; default: 1.
        gone: Index of a task → the first step without its rows. It may grow while steps are taken. The rows of the
            others stay what they are.

    Raises:
        UserError: A step cannot be cut as the planner says, or has fewer rows than shares.
    """

    def __init__(
        self,
        names: Sequence[str],
        lengths: Sequence[Sequence[int]],
        quota: Sequence[int],
        seed: int,
        planner: Planner,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[Sequence[int]] | None = None,
        gone: Mapping[int, int] | None = None,
    ) -> None:
        self._weights = weights
        self._gone: Mapping[int, int] = {} if gone is None else gone
        self._streams = [RowStream(n, len(sizes), seed) for n, sizes in zip(names, lengths, strict=True)]
        self._lengths, self._quota, self._accumulate = lengths, list(quota), accumulate
        self._planner = planner if accumulate == 1 else replace(planner, micro_batches=accumulate)
        self._rank, self._world_size = rank, world_size
        self._epoch = 0
        total = sum(len(sizes) for sizes in lengths)
        self.steps_per_epoch: int = max(1, math.ceil(total / sum(self._quota)))
        self._check_longest()

    def __len__(self) -> int:
        return self.steps_per_epoch * self._accumulate

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch: epoch e holds the steps from e · steps_per_epoch on."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        first = self._epoch * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            cuts = self.step(step)
            yield from [cuts] if self._accumulate == 1 else ([cut] for cut in cuts)

    def _check_longest(self) -> None:
        """Plan a step of the longest rows: what fits then always fits, and what does not shows at once."""
        longest = [max(sizes) for sizes in self._lengths]
        tasks = [task for task, quota in enumerate(self._quota) for _ in range(quota)]
        if len(tasks) < self._world_size:
            raise UserError(
                "A step has fewer rows than there are processes",
                expected=f"at least {self._world_size} rows in a step, one for each process",
                found=f"{len(tasks)} rows",
                todo="raise `mixing.rows_per_task` (the `quota`), or start fewer processes",
            )
        own = own_rows([longest[task] for task in tasks], self._rank, self._world_size)
        self._planner.plan([longest[tasks[i]] for i in own], [tasks[i] for i in own])

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of this rank's share of one step."""
        rows, halves = [], []
        for task, (stream, quota) in enumerate(zip(self._streams, self._quota, strict=True)):
            if step >= self._gone.get(task, step + 1):
                continue
            rows += [(task, row) for row in stream.take(step * quota, quota)]
            halves += [place % 2 for place in range(quota)]
        lengths = [self._lengths[task][row] for task, row in rows]
        weights = [0] * len(self._quota)
        for task, row in rows:
            weights[task] += 1 if self._weights is None else self._weights[task][row]
        own = own_rows(lengths, self._rank, self._world_size)
        rows, lengths, halves = [rows[i] for i in own], [lengths[i] for i in own], [halves[i] for i in own]
        planner = self._planner
        if planner.micro_batches is not None and self._accumulate == 1:  # of a whole step; a smaller one has fewer rows
            planner = replace(planner, micro_batches=min(planner.micro_batches, len(rows)))
        cuts = planner.plan(lengths, [task for task, _ in rows])
        return [MicroBatch(tuple(rows[i] for i in cut), tuple(weights), tuple(halves[i] for i in cut)) for cut in cuts]
