"""Quotas, row streams and cuts: the properties a step must have."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortholora.data.mixing import RowStream, StepSampler, quotas
from ortholora.data.planner import Planner
from ortholora.errors import UserError

SIZES = st.lists(st.integers(1, 100_000), min_size=1, max_size=8)


@given(SIZES, st.integers(0, 100), st.sampled_from(["equal", "proportional", "temperature"]))
def test_quotas_meet_the_total_and_starve_nobody(sizes: list[int], extra: int, quota: str) -> None:
    rows = len(sizes) + extra
    result = quotas(sizes, rows, quota)  # type: ignore[arg-type]
    assert sum(result) == rows
    assert min(result) >= 1
    for (size, q), (other, p) in itertools.combinations(zip(sizes, result, strict=True), 2):
        if size > other and quota != "equal":
            assert q >= p - 1  # a larger task never gets fewer, but for rounding


def test_quotas_by_hand() -> None:
    assert quotas([900, 100], 20, "equal") == [10, 10]
    assert quotas([900, 100], 20, "proportional") == [18, 2]
    assert quotas([900, 100], 20, "temperature", 2.0) == [15, 5]
    assert quotas([900, 100], 20, "temperature", 1.0) == [18, 2]


def test_quotas_of_tokens_by_hand() -> None:
    """Rows of 10 and of 30 tokens: equal tokens are three rows to one; in proportion to tokens is as to rows."""
    assert quotas([500, 500], 40, "equal", lengths=[10, 30]) == [30, 10]
    assert quotas([900, 100], 20, "proportional", lengths=[10, 30]) == [18, 2]
    # Tokens 4000 and 64000: their roots are 1 to 4, of tokens; of rows, 1/10 to 4/40.
    assert quotas([400, 1600], 20, "temperature", 2.0, lengths=[10, 40]) == [10, 10]
    assert quotas([5, 5, 5], 6, "equal", lengths=[1, 1, 1000]) in ([3, 2, 1], [2, 3, 1])  # nobody is starved


def test_a_large_task_brings_new_rows_while_a_small_one_goes_round() -> None:
    """An epoch of the small task after the other has other rows of the large one, until that has been seen whole."""
    sampler = StepSampler(["small", "large"], [[5] * 8, [5] * 40], [4, 4], 0, Planner("mixed"))
    epochs = [[row for step in (2 * e, 2 * e + 1) for cut in sampler.step(step) for row in cut.rows] for e in range(5)]
    seen = [{row for task, row in epoch if task == 1} for epoch in epochs]
    assert all(sorted(row for task, row in epoch if task == 0) == list(range(8)) for epoch in epochs)
    assert set.union(*seen) == set(range(40))
    assert sum(map(len, seen)) == 40


def test_too_few_rows() -> None:
    with pytest.raises(UserError, match="at least 3 rows"):
        quotas([5, 5, 5], 2)


@pytest.mark.parametrize("rank", range(3))
def test_fewer_rows_than_processes_are_refused_by_every_process(rank: int) -> None:
    """At the start, before any of them waits for the others."""

    def start(quota: list[int]) -> StepSampler:
        return StepSampler(["a", "b"], [[5] * 8, [5] * 8], quota, 0, Planner("mixed"), rank=rank, world_size=3)

    with pytest.raises(UserError, match=r"(?s)at least 3 rows in a step.*2 rows.*start fewer processes"):
        start([1, 1])
    assert sum(len(cut.rows) for cut in start([2, 1]).step(0)) == 1


def test_a_stream_starts_over_reshuffled() -> None:
    stream = RowStream("a", 7, seed=0)
    rows = stream.take(0, 21)
    rounds = [rows[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(r) == list(range(7)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 3
    assert stream.take(5, 4) == rows[5:9]
    assert RowStream("b", 7, seed=0).take(0, 21) != rows
    assert RowStream("a", 7, seed=1).take(0, 21) != rows


LENGTHS = [[3, 9, 4, 8], [30, 20, 25], [5] * 11]


def sampler(planner: Planner | None = None, accumulate: int = 1) -> StepSampler:
    return StepSampler(["a", "b", "c"], LENGTHS, [2, 1, 4], 0, planner or Planner("mixed"), accumulate)


@pytest.mark.parametrize("layout", ["auto", "mixed", "by-length", "by-task", "padding-free"])
@pytest.mark.parametrize("micro_batches", [None, 1, 3])
def test_a_step_holds_its_quota_however_it_is_cut(layout: Any, micro_batches: int | None) -> None:
    planner = Planner(layout, None if layout == "by-task" else micro_batches, launch_tokens=3)
    for step in range(9):
        cuts = sampler(planner).step(step)
        rows = [row for cut in cuts for row in cut.rows]
        assert Counter(task for task, _ in rows) == {0: 2, 1: 1, 2: 4}
        assert sorted(rows) == sorted(sampler().step(step)[0].rows)
        assert all([task for task, _ in cut.rows] == sorted(task for task, _ in cut.rows) for cut in cuts)
        assert all(cut.weights == (2, 1, 4) for cut in cuts)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_weights_are_those_of_the_whole_step_on_every_rank(ranks: int) -> None:
    weights = [[10 * length for length in task] for task in LENGTHS]
    names, planner = ["a", "b", "c"], Planner("by-length", 2)
    for step in range(4):
        parts = [
            StepSampler(names, LENGTHS, [2, 1, 4], 0, planner, 1, rank, ranks, weights).step(step)
            for rank in range(ranks)
        ]
        rows = [row for cuts in parts for cut in cuts for row in cut.rows]
        expected = tuple(sum(weights[t][row] for of, row in rows if of == t) for t in range(3))
        assert {cut.weights for cuts in parts for cut in cuts} == {expected}
        assert len(rows) == len(set(rows)) == 7


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("layout", ["mixed", "by-length", "by-task", "padding-free"])
def test_a_rows_half_depends_on_its_place_in_the_step_alone(layout: Any, ranks: int) -> None:
    expected = {row: task_place % 2 for row, task_place in zip(*_in_order(), strict=True)}
    found = {}
    for rank in range(ranks):
        planner = Planner(layout, None if layout == "by-task" else 2)
        for cut in StepSampler(["a", "b", "c"], LENGTHS, [2, 1, 4], 0, planner, 1, rank, ranks).step(2):
            found |= dict(zip(cut.rows, cut.halves, strict=True))
    assert found == expected


def _in_order() -> tuple[list[tuple[int, int]], list[int]]:
    """The rows of step 2 and each one's place among its task's."""
    rows, places = [], []
    for task, (name, quota) in enumerate(zip("abc", [2, 1, 4], strict=True)):
        rows += [(task, row) for row in RowStream(name, len(LENGTHS[task]), 0).take(2 * quota, quota)]
        places += range(quota)
    return rows, places


def test_epochs_follow_each_other() -> None:
    steps = sampler()
    assert len(steps) == steps.steps_per_epoch == 3  # 18 rows, 7 a step
    first = list(steps)
    steps.set_epoch(1)
    assert list(steps) == [steps.step(step) for step in range(3, 6)]
    assert list(steps) != first


def test_accumulation_yields_micro_batch_by_micro_batch() -> None:
    steps = sampler(Planner("mixed"), accumulate=2)
    assert len(steps) == 2 * steps.steps_per_epoch == 6
    assert [cut for item in steps for cut in item] == [cut for step in range(3) for cut in steps.step(step)]
    assert all(len(item) == 1 for item in steps)


def test_a_plan_that_cannot_be_made_shows_at_once() -> None:
    with pytest.raises(UserError, match="at most 7 micro-batches"):
        sampler(accumulate=8)
    with pytest.raises(UserError, match="a row of 30 tokens"):
        sampler(Planner(max_tokens=10))
