"""Quotas, row streams and cuts: the properties a step must have."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortholora.data.layout import cut_by_length, cut_evenly
from ortholora.data.mixing import MixedBatchSampler, RowStream, quotas
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


def test_too_few_rows() -> None:
    with pytest.raises(UserError, match="at least 3 rows"):
        quotas([5, 5, 5], 2)


def test_a_stream_starts_over_reshuffled() -> None:
    stream = RowStream("a", 7, seed=0)
    rows = stream.take(0, 21)
    rounds = [rows[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(r) == list(range(7)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 3
    assert stream.take(5, 4) == rows[5:9]
    assert RowStream("b", 7, seed=0).take(0, 21) != rows
    assert RowStream("a", 7, seed=1).take(0, 21) != rows


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_an_even_cut_shares_every_task(tasks: list[int], data: st.DataObject) -> None:
    pieces = data.draw(st.integers(1, len(tasks)))
    cuts = cut_evenly(tasks, pieces)
    assert sorted(row for cut in cuts for row in cut) == list(range(len(tasks)))
    for task in set(tasks):
        shares = [sum(tasks[row] == task for row in cut) for cut in cuts]
        assert max(shares) - min(shares) <= 1
    assert all(cuts)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_a_cut_by_length_pads_least(lengths: list[int], data: st.DataObject) -> None:
    """Against every contiguous cut of the sorted rows."""
    pieces = data.draw(st.integers(1, min(3, len(lengths))))
    cuts = cut_by_length(lengths, pieces)
    assert sorted(row for cut in cuts for row in cut) == list(range(len(lengths)))
    assert len(cuts) == pieces

    def padded(parts: list[list[int]]) -> int:
        return sum(len(part) * max(part) for part in parts)

    ordered = sorted(lengths)
    every = [
        padded([ordered[a:b] for a, b in itertools.pairwise([0, *stops, len(ordered)])])
        for stops in itertools.combinations(range(1, len(ordered)), pieces - 1)
    ]
    assert padded([[lengths[row] for row in cut] for cut in cuts]) == min(every)


@pytest.mark.parametrize("layout", ["mixed", "by-length"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_step_holds_its_quota_however_it_is_cut(layout: str, micro_batches: int) -> None:
    lengths = [[3, 9, 4, 8], [30, 20, 25], [5] * 11]
    sampler = MixedBatchSampler(["a", "b", "c"], lengths, [2, 1, 4], micro_batches, 0, layout)  # type: ignore[arg-type]
    plain = MixedBatchSampler(["a", "b", "c"], lengths, [2, 1, 4], 1, 0)
    for step in range(9):
        cuts = sampler.step(step)
        assert len(cuts) == micro_batches
        rows = [row for cut in cuts for row in cut]
        assert Counter(task for task, _ in rows) == {0: 2, 1: 1, 2: 4}
        assert sorted(rows) == sorted(plain.step(step)[0])
        assert all([task for task, _ in cut] == sorted(task for task, _ in cut) for cut in cuts)


def test_epochs_follow_each_other() -> None:
    sampler = MixedBatchSampler(["a", "b"], [[1] * 5, [1] * 9], [2, 2], 2, 0)
    assert len(sampler) == 2 * sampler.steps_per_epoch == 8
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == [cut for step in range(4, 8) for cut in sampler.step(step)]
    assert list(sampler) != first


def test_more_micro_batches_than_rows() -> None:
    with pytest.raises(UserError, match="at most 2 micro-batches"):
        MixedBatchSampler(["a", "b"], [[1], [1]], [1, 1], 3, 0)
