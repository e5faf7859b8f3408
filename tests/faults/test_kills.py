"""A few kills at random moments; `kill.py` does a hundred."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill import kill_often

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "count"), [("train", 3), ("compare", 1)])
def test_a_killed_command_goes_on_to_the_bytes_of_the_undisturbed_one(tmp_path: Path, name: str, count: int) -> None:
    kills, wrong = kill_often(tmp_path, [name], count, seed=0)
    assert kills >= count
    assert not wrong, "\n".join(wrong)
