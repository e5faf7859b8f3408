"""Rows to choose on: cut from the training rows, class by class, and scored by nothing else."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ortholora.data.read import hash_rows
from ortholora.data.task import Split, TaskData
from ortholora.errors import UserError

#: The largest share of a task's training rows that is cut.
_SHARE = 5
#: Fewer rows than this choose nothing.
_FEWEST = 10


def cut_rows(tasks: Sequence[TaskData], rows: int, seed: int) -> tuple[list[TaskData], list[TaskData]]:
    """Cut rows to choose on from every task.

    Args:
        tasks: The data.
        rows: Rows of each task; at most a fifth of its training rows.
        seed: Seed of the draw.

    Returns:
        The tasks of the study, whose training rows lack the cut ones, and those of the trials: the same, with the cut
        rows in the place of the dev rows.

    Raises:
        UserError: A task has too few training rows.
    """
    pairs = [_cut(task, rows, seed) for task in tasks]
    return [study for study, _ in pairs], [trial for _, trial in pairs]


def _cut(task: TaskData, rows: int, seed: int) -> tuple[TaskData, TaskData]:
    count = min(rows, len(task.train) // _SHARE)
    if count < _FEWEST:
        raise UserError(
            f"study.sweep: task {task.name!r} has too few training rows to choose on",
            expected=f"{_FEWEST * _SHARE} training rows or more: a fifth of them is cut off for the choice",
            found=f"{len(task.train)} training rows",
            todo="give the task more rows, or set what the sweep would choose for the whole study",
        )
    chosen = set(_draw(task, count, np.random.default_rng([seed, zlib.crc32(task.name.encode()), 2])))
    rest = task.train.take([i for i in range(len(task.train)) if i not in chosen])
    cut = task.train.take(sorted(chosen))
    source = task.sources.get("train", "").partition(" sha256:")[0]

    def named(part: str, split: Split, words: str) -> dict[str, str]:
        return {part: f"{source} {words} sha256:{hash_rows(split, task.labels)}"}

    study = replace(task, train=rest, sources=task.sources | named("train", rest, f"without {count} rows"))
    trial = replace(study, dev=cut, test=None, sources=study.sources | named("dev", cut, f"{count} rows cut off"))
    trial.sources.pop("test", None)  # what is chosen is chosen without it
    return study, trial


def _draw(task: TaskData, count: int, generator: np.random.Generator) -> list[int]:
    """Draw rows so that every class has its share, rounded by the largest remainder."""
    order = generator.permutation(len(task.train))
    if task.labels is None:
        return [int(i) for i in order[:count]]
    targets = np.asarray(task.train.targets)[order]
    sizes = np.array([(targets == label).sum() for label in range(len(task.labels))])
    share = sizes * count / len(order)
    take = np.floor(share).astype(int)
    remainder = np.where(sizes > 1, share - take, 0.0)  # the only row of a class is left to train on
    take[np.argsort(-remainder, kind="stable")[: count - take.sum()]] += 1
    return [int(i) for label, number in enumerate(take) for i in order[targets == label][:number]]
