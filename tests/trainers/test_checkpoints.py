"""Checkpoints on disk: which one is the last, and what a crash between two renames left."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import torch

from ortholora.errors import UserError
from ortholora.trainers import checkpoints
from ortholora.trainers.resume import STATE_FILE, read_state, write_state


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_text(name)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_is_the_one_of_most_steps(tmp_path: Path) -> None:
    assert checkpoints.last(tmp_path / "none") is None
    assert not checkpoints.has_any(tmp_path)
    make(tmp_path, "checkpoint-10", "checkpoint-9", ".saving", "checkpoint-x", "checkpoint-11.tmp")
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoints.step_of(tmp_path / "checkpoint-10") == 10
    assert checkpoints.step_of(None) == 0


def test_one_that_was_left_aside_is_put_back(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-2", "checkpoint-4.old")
    assert checkpoints.has_any(tmp_path)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4.old"]  # looking changes nothing
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-4"
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "weights").read_text() == "checkpoint-4.old"


def test_one_that_was_replaced_goes(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-4", "checkpoint-4.old")
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-4"
    assert names(tmp_path) == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "weights").read_text() == "checkpoint-4"


def test_only_one_aside_is_work_too(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-4.old")
    assert checkpoints.has_any(tmp_path)


@pytest.mark.parametrize(("limit", "keep", "left"), [(1, None, "4"), (2, None, "34"), (1, "a/checkpoint-1", "14")])
def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path, limit: int, keep: str | None, left: str) -> None:
    make(tmp_path, *(f"checkpoint-{step}" for step in (1, 2, 3, 4)))
    checkpoints.rotate(tmp_path, limit, keep)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_a_state_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path / "new", {"step": 1})
    assert read_state(tmp_path / "new") == {"step": 1}
    save = torch.save

    def full(state, stream):
        save(state, stream)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_state(tmp_path / "new", {"step": 2})
    assert names(tmp_path / "new") == [STATE_FILE]
    assert read_state(tmp_path / "new") == {"step": 1}


def test_only_trouble_with_the_disk_is_called_so(tmp_path: Path) -> None:
    """Another rank's death while a checkpoint is written is no full disk, and is not reported as one."""
    with pytest.raises(RuntimeError, match="Connection closed"), checkpoints.staging(tmp_path / "a", "The model"):
        raise RuntimeError("Connection closed by peer")
    unwritable = tmp_path / "no-such-folder" / "weights.pt"
    with pytest.raises(UserError, match="could not be saved"), checkpoints.staging(tmp_path / "b", "The model"):
        torch.save(torch.ones(1), unwritable)
    for full in (  # both are torch's words for a full disk: in the middle of a file, and at its end
        "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0",
        "basic_ios::clear: iostream error",
    ):
        said = "written to its end (RuntimeError: " + full
        with pytest.raises(UserError, match=re.escape(said)), checkpoints.staging(tmp_path / "c", "The model"):
            raise RuntimeError(full)
