"""Which tasks to give an adapter of their own: the partition with the best measured transfer.

What a step on i does to j is set against j's loss: `Z_ij = 1 − L_j(after a step on i) / L_j` (Fifty et al.,
*Efficiently Identifying Task Groupings for Multi-Task Learning*, NeurIPS 2021, arXiv 2109.04617). A group is worth to
each of its tasks the mean of what the others do to it; to a task alone nothing (0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

#: Tasks up to which all partitions are looked at.
EXHAUSTIVE = 10

Partition = tuple[tuple[int, ...], ...]


def worth(groups: Partition, affinity: np.ndarray) -> float:
    """Sum over tasks of the mean affinity of the others in its group to it.

    Args:
        groups: The tasks of each adapter.
        affinity: `Z [T, T]`: row acts on column.
    """
    total = 0.0
    for group in groups:
        for task in group:
            others = [other for other in group if other != task]
            total += float(affinity[others, task].mean()) if others else 0.0
    return total


def propose(affinity: np.ndarray, count: int) -> Partition:
    """The partition into at most `count` groups that is worth most; of equals, the one with fewer groups.

    Up to `EXHAUSTIVE` tasks all are looked at. With more, one task after another moves to where it is worth most, from
    all tasks together on, until none does.
    """
    tasks = len(affinity)
    if tasks <= EXHAUSTIVE:
        return max(partitions(tasks, count), key=lambda groups: (worth(groups, affinity), -len(groups)))
    return _climb(affinity, count)


def partitions(tasks: int, count: int) -> Iterator[Partition]:
    """All partitions of tasks 0, 1, … into at most `count` groups."""

    def grow(task: int, groups: list[list[int]]) -> Iterator[Partition]:
        if task == tasks:
            yield tuple(tuple(group) for group in groups)
            return
        for group in groups:
            group.append(task)
            yield from grow(task + 1, groups)
            group.pop()
        if len(groups) < count:
            yield from grow(task + 1, [*groups, [task]])

    return grow(0, [])


def _climb(affinity: np.ndarray, count: int) -> Partition:
    place = [0] * len(affinity)
    best = worth(_groups(place), affinity)
    moved = True
    while moved:
        moved = False
        for task in range(len(place)):
            for target in range(count):
                tried = [*place[:task], target, *place[task + 1 :]]
                if (value := worth(_groups(tried), affinity)) > best + 1e-12:
                    place, best, moved = tried, value, True
    return _groups(place)


def _groups(place: Sequence[int]) -> Partition:
    found = [tuple(task for task, own in enumerate(place) if own == group) for group in sorted(set(place))]
    return tuple(sorted(found))
