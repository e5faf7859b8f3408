"""`conflicts.npz`: comes back whole, or is refused in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ortholora.errors import UserError
from ortholora.runs.history import HISTORY_FILE, read_history, write_history
from ortholora.trainers.history import ConflictHistory


@pytest.fixture
def history() -> ConflictHistory:
    generator = np.random.default_rng(0)
    cosines, lengths = generator.normal(size=(4, 3, 3)), generator.normal(size=(4, 3, 3))
    return ConflictHistory(
        ("a", "b", "c"), ("x", "y"), np.array([2, 2, 2, 1]), cosines, np.ones((4, 3, 3)), lengths, np.ones((4, 3, 3))
    )


def test_round_trip(tmp_path: Path, history: ConflictHistory) -> None:
    write_history(tmp_path, history)
    back = read_history(tmp_path)
    assert back is not None
    assert (back.tasks, back.blocks, back.pairs) == (history.tasks, history.blocks, history.pairs)
    np.testing.assert_array_equal(back.steps, history.steps)
    np.testing.assert_allclose(back.cosines, history.cosines, rtol=1e-6)
    np.testing.assert_allclose(back.lengths, history.lengths, rtol=1e-6)


def test_a_run_without_one(tmp_path: Path) -> None:
    assert read_history(tmp_path) is None


@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_a_damaged_file_is_named(tmp_path: Path, history: ConflictHistory, keep: float) -> None:
    write_history(tmp_path, history)
    path = tmp_path / HISTORY_FILE
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match="delete only"):
        read_history(tmp_path)


def test_arrays_that_do_not_fit(tmp_path: Path, history: ConflictHistory) -> None:
    write_history(tmp_path, dataclasses.replace(history, blocks=("x",)))
    with pytest.raises(UserError, match="`cosines` of shape"):
        read_history(tmp_path)
    write_history(tmp_path, history)
    with np.load(tmp_path / HISTORY_FILE) as archive:
        arrays = {key: archive[key] for key in archive.files if key != "steps"}
    np.savez(tmp_path / HISTORY_FILE, **arrays)
    with pytest.raises(UserError, match="steps"):
        read_history(tmp_path)
