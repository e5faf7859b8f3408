"""Cuts of a step: complete, under the budget, and the cheapest there are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortholora.data.planner import Planner, cut_evenly
from ortholora.errors import UserError

LAYOUTS = ["auto", "mixed", "by-length", "by-task", "padding-free"]


def padded(cut: list[int], lengths: list[int]) -> int:
    return len(cut) * max(lengths[row] for row in cut)


def every_cut(lengths: list[int]) -> list[list[list[int]]]:
    """All ways to cut the sorted rows into contiguous pieces."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    inner = range(1, len(order))
    stops = itertools.chain.from_iterable(itertools.combinations(inner, n) for n in range(len(order)))
    return [[order[a:b] for a, b in itertools.pairwise([0, *cut, len(order)])] for cut in stops]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_an_even_cut_shares_every_task(tasks: list[int], data: st.DataObject) -> None:
    pieces = data.draw(st.integers(1, len(tasks)))
    cuts = cut_evenly(tasks, pieces)
    assert sorted(row for cut in cuts for row in cut) == list(range(len(tasks)))
    for task in set(tasks):
        shares = [sum(tasks[row] == task for row in cut) for cut in cuts]
        assert max(shares) - min(shares) <= 1
    assert all(cuts)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_a_plan_is_complete_and_under_the_budget(layout: Any, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=25))
    tasks = [data.draw(st.integers(0, 3)) for _ in lengths]
    budget, multiple = data.draw(st.integers(40, 300)), data.draw(st.sampled_from([1, 8]))
    planner = Planner(layout, None, budget, data.draw(st.sampled_from([0, 10, 1e9])), multiple)
    cuts = planner.plan(lengths, tasks)
    assert sorted(row for cut in cuts for row in cut) == list(range(len(lengths)))
    assert all(cuts)
    if layout == "padding-free":
        assert all(sum(lengths[row] for row in cut) <= budget for cut in cuts)
        assert [tasks[row] for cut in cuts for row in cut] == sorted(tasks)
    else:
        rounded = [-(-length // multiple) * multiple for length in lengths]
        assert all(padded(cut, rounded) <= budget for cut in cuts)
        assert all(cut == sorted(cut) for cut in cuts)
    if layout == "by-task":
        assert all(len({tasks[row] for row in cut}) == 1 for cut in cuts)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=8), st.sampled_from([0.0, 7.0, 60.0, 1e6]), st.integers(50, 90)
)
def test_by_length_costs_least(lengths: list[int], launch: float, budget: int) -> None:
    cuts = Planner("by-length", None, budget, launch).plan(lengths, [0] * len(lengths))

    def cost(parts: list[list[int]]) -> float:
        return sum(padded(part, lengths) + launch for part in parts)

    allowed = [parts for parts in every_cut(lengths) if all(padded(part, lengths) <= budget for part in parts)]
    assert cost(cuts) == min(cost(parts) for parts in allowed)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_by_length_into_so_many_pads_least(lengths: list[int], data: st.DataObject) -> None:
    pieces = data.draw(st.integers(1, len(lengths)))
    cuts = Planner("by-length", pieces).plan(lengths, [0] * len(lengths))
    assert len(cuts) == pieces
    every = [parts for parts in every_cut(lengths) if len(parts) == pieces]
    best = min(sum(padded(part, lengths) for part in parts) for parts in every)
    assert sum(padded(cut, lengths) for cut in cuts) == best


def test_a_dear_launch_makes_one_mixed_micro_batch_and_a_free_one_no_padding() -> None:
    lengths, tasks = [10, 80, 10, 80, 11], [0, 1, 0, 1, 2]
    assert Planner(launch_tokens=1e9).plan(lengths, tasks) == [[0, 1, 2, 3, 4]]
    free = Planner(launch_tokens=0).plan(lengths, tasks)
    assert sum(padded(cut, lengths) for cut in free) == sum(lengths)
    assert Planner(launch_tokens=50).plan(lengths, tasks) == [[0, 2, 4], [1, 3]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_end_to_end_into_so_many(lengths: list[int], data: st.DataObject) -> None:
    pieces = data.draw(st.integers(1, len(lengths)))
    cuts = Planner("padding-free", pieces).plan(lengths, [0] * len(lengths))
    assert len(cuts) == pieces
    assert all(cuts)
    assert [row for cut in cuts for row in cut] == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batches": 4}, "at most 3 micro-batches"),
        ({"max_tokens": 19}, "a row of 20 tokens"),
        ({"micro_batches": 1, "max_tokens": 50}, "does not fit into 1 micro-batches"),
        ({"layout": "mixed", "micro_batches": 1, "max_tokens": 50}, "does not fit into 1 micro-batches"),
        ({"layout": "padding-free", "micro_batches": 1, "max_tokens": 50}, "does not fit into 1 micro-batches"),
        ({"layout": "by-task", "micro_batches": 2}, "decides itself"),
    ],
)
def test_plans_that_cannot_be_made(settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Planner(**settings).plan([20, 20, 20], [0, 0, 1])
