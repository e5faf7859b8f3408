"""The rows that are measured on: drawn from the training rows, not trained on, and dealt to micro-batches."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ortholora.data.task import TaskData
from ortholora.errors import UserError

#: Micro-batches, and the fewest that intervals can be had from. Both halves of the rows have half of them.
MICRO_BATCHES, FEWEST = 16, 8
#: At most one training row in so many is held out.
_SHARE = 2


@dataclass(frozen=True)
class Groups:
    """How the held-out rows are dealt: micro-batch k has rows `k · rows … (k + 1) · rows` of every task.

    Attributes:
        count: Micro-batches, an even number.
        rows: Rows of each task in a micro-batch.
    """

    count: int
    rows: int

    @property
    def total(self) -> int:
        """Rows of each task."""
        return self.count * self.rows

    @property
    def halves(self) -> tuple[range, range]:
        """The micro-batches of either half."""
        return range(self.count // 2), range(self.count // 2, self.count)

    def of(self, group: int) -> range:
        """The rows of a micro-batch."""
        return range(group * self.rows, (group + 1) * self.rows)


def deal(rows: int) -> Groups:
    """Deal rows to micro-batches.

    Args:
        rows: Rows of each task; a remainder may be left over.

    Raises:
        UserError: There are too few rows.
    """
    if rows < FEWEST:
        raise UserError(
            "There are too few rows to measure on",
            expected=f"--rows {FEWEST} or more: {FEWEST // 2} micro-batches in each of two halves",
            found=f"--rows {rows}",
            todo="give more; 192 are advised",
        )
    # As many of the rows as possible; and then as many micro-batches, because intervals rest on their number.
    return max((Groups(count, rows // count) for count in range(FEWEST, MICRO_BATCHES + 1, 2)), key=_used)


def _used(groups: Groups) -> tuple[int, int]:
    return groups.total, groups.count


def hold_out(tasks: Sequence[TaskData], groups: Groups, seed: int) -> list[TaskData]:
    """Take rows out of every task's training rows.

    Any row is as likely as any other, also to lie beside another of its class: rows that were dealt out class by class
    would hide the part of a step's noise that comes from its mixture of classes, and lengths would come out too short.

    Args:
        tasks: The data.
        groups: How many rows, and how they are dealt.
        seed: Seed of the draw.

    Returns:
        The tasks without these rows; they are in the place of the dev rows.

    Raises:
        UserError: A task has too few rows, or a half of them one class only.
    """
    return [_hold_out(task, groups, seed) for task in tasks]


def _hold_out(task: TaskData, groups: Groups, seed: int) -> TaskData:
    if len(task.train) < _SHARE * groups.total:
        most = len(task.train) // _SHARE
        raise UserError(
            f"Task {task.name!r} has too few training rows to measure on",
            expected=f"{_SHARE * groups.total} or more: {groups.total} that are measured on (--rows), and as many left",
            found=f"{len(task.train)} training rows",
            todo=f"use --rows {most}" if most >= FEWEST else "give the task more rows, or leave it out (--tasks)",
        )
    order = np.random.default_rng([seed, zlib.crc32(task.name.encode()), 3]).permutation(len(task.train))
    held, rest = order[: groups.total], np.sort(order[groups.total :])
    if task.labels is not None:
        _check_classes(task, [held[[row for k in half for row in groups.of(k)]] for half in groups.halves])
    return replace(task, train=task.train.take(rest), dev=task.train.take(held), test=None)


def _check_classes(task: TaskData, halves: Sequence[np.ndarray]) -> None:
    targets = np.asarray(task.train.targets)
    assert task.labels is not None
    for half in halves:
        if len(task.labels) > 1 and len(np.unique(targets[half])) < 2:
            raise UserError(
                f"Half of the rows of task {task.name!r} that are measured on are of one class",
                expected="two classes or more in each half",
                found=f"{len(half)} rows of class {task.labels[int(targets[half[0]])]!r}",
                todo="raise --rows, or give the task more rows of its other classes",
            )
