"""The rows that a sweep chooses on."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from ortholora.data.task import Split, TaskData
from ortholora.errors import UserError
from ortholora.study.sweep.rows import cut_rows
from ortholora.text.texts import Texts


def task(targets, labels=("a", "b", "c"), name="task"):
    texts = [Texts([f"row {index}"]) for index in range(len(targets))]
    return TaskData(SimpleNamespace(name=name), labels, Split(texts, targets), Split([Texts(["dev"])], [0]))


def cut(data, rows, seed=0):
    (kept,), (trial,) = cut_rows([data], rows, seed)
    return kept, trial


def test_every_row_is_either_trained_on_or_chosen_on():
    data = task([0] * 60 + [1] * 30 + [2] * 10)
    kept, trial = cut(data, 20)
    assert Counter(trial.dev.targets) == {0: 12, 1: 6, 2: 2}
    assert sorted([*kept.train.texts, *trial.dev.texts]) == sorted(data.train.texts)
    assert trial.train == kept.train
    assert kept.dev == data.dev
    # A row keeps its target.
    whole = dict(zip(data.train.texts, data.train.targets, strict=True))
    for split in (kept.train, trial.dev):
        assert all(whole[text] == target for text, target in zip(split.texts, split.targets, strict=True))
    assert kept.sources != data.sources


def test_at_most_a_fifth():
    assert len(cut(task([0, 1] * 30, ("a", "b")), 200)[1].dev) == 12
    with pytest.raises(UserError, match="too few training rows"):
        cut(task([0, 1] * 24, ("a", "b")), 200)


def test_the_seed_and_the_name_draw():
    draws = [
        cut(task([0] * 100, ("a",), name), 20, seed)[1].dev for name, seed in (("x", 0), ("x", 0), ("x", 1), ("y", 0))
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draws[3]


def test_the_only_row_of_a_class_is_left_to_train_on():
    # 10 of 50 rows: the shares are 9, and .2 five times, one of which would be rounded up.
    kept, trial = cut(task([0] * 45 + [1, 2, 3, 4, 5], tuple("abcdef")), 10)
    assert trial.dev.targets == [0] * 10
    assert set(kept.train.targets) == {0, 1, 2, 3, 4, 5}


def test_a_regression_is_drawn_at_random():
    kept, trial = cut(task([float(index) for index in range(100)], None), 20)
    assert (len(kept.train), len(trial.dev)) == (80, 20)
    assert trial.dev.targets != [float(index) for index in range(20)]
