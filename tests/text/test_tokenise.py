"""Rows that are cut are counted: not those that fit just so, and pairs as well as single texts."""

from __future__ import annotations

from typing import Any

import pytest

import workspaces
from ortholora.data.task import Split
from ortholora.models.heads import HeadSpec

SPEC = HeadSpec("any", "classification", ("no", "yes"))


@pytest.fixture(scope="module")
def space() -> Any:
    return workspaces.workspace()


@pytest.mark.parametrize(("max_length", "cut"), [(5, 2), (6, 1), (7, 0), (8, 0)])
def test_single_texts(space: Any, max_length: int, cut: int) -> None:
    rows = Split([("the goal",), ("the goal a day",), ("the goal a day in",)], [0, 0, 0])  # 4, 6 and 7 tokens
    found = SPEC.encode(rows, space.tokenizer, max_length)
    assert found.lengths == [min(n, max_length) for n in (4, 6, 7)]
    assert found.cut == cut


def test_pairs(space: Any) -> None:
    rows = Split([("the goal", "a day"), ("the goal a", "day in")], [0, 1])  # 7 and 8 tokens
    assert SPEC.encode(rows, space.tokenizer, 7).cut == 1
