"""Groups of tasks, against all that there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ortholora.study.diagnose import grouping
from ortholora.study.diagnose.grouping import partitions, propose, worth

BELL = [1, 1, 2, 5, 15, 52]


@pytest.mark.parametrize("tasks", range(1, 6))
def test_all_partitions_once(tasks):
    found = list(partitions(tasks, tasks))
    assert len(set(found)) == len(found) == BELL[tasks]
    assert all(sorted(itertools.chain(*groups)) == list(range(tasks)) for groups in found)
    assert [groups for groups in found if len(groups) <= 2] == list(partitions(tasks, 2))


def worth_slowly(labels: tuple[int, ...], affinity: np.ndarray) -> float:
    total = 0.0
    for j, label in enumerate(labels):
        own = [affinity[i, j] for i, other in enumerate(labels) if other == label and i != j]
        total += sum(own) / len(own) if own else 0.0
    return total


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_best_of_all(count):
    affinity = np.random.default_rng(count).normal(size=(5, 5))
    best = max(worth_slowly(labels, affinity) for labels in itertools.product(range(count), repeat=5))
    groups = propose(affinity, count)
    assert len(groups) <= count
    assert worth(groups, affinity) == pytest.approx(best)


def friends() -> np.ndarray:
    """Tasks 0, 2 and 1, 3 help each other; all else hurts."""
    affinity = np.full((4, 4), -1.0)
    affinity[[0, 2, 1, 3], [2, 0, 3, 1]] = 1.0
    return affinity


@pytest.mark.parametrize("exhaustive", [10, 0])
def test_friends_stay_together(monkeypatch, exhaustive):
    monkeypatch.setattr(grouping, "EXHAUSTIVE", exhaustive)
    assert propose(friends(), 2) == ((0, 2), (1, 3))
    assert propose(np.ones((4, 4)), 3) == ((0, 1, 2, 3),)
    assert propose(friends(), 1) == ((0, 1, 2, 3),)


def test_a_loner_is_left_alone():
    affinity = np.full((3, 3), 0.5)
    affinity[2] = affinity[:, 2] = -0.5
    assert propose(affinity, 2) == ((0, 1), (2,))
