"""Two commands do not write one run: the second is refused, and told who writes it."""

from __future__ import annotations

import os

import pytest

from ortholora.runs.lock import lock
from ortholora.runs.progress import ProgressCallback
from ortholora.study.folders import STUDY_FILE

PLACES = {"train": "out", "compare": "out/runs/ortho/seed-0"}


@pytest.mark.parametrize("command", list(PLACES))
def test_a_folder_that_is_being_written_is_refused_at_once(cli, home, command):
    with lock(home / PLACES[command]):
        message = cli.complaint(command, "tiny.yaml", "--out", "out")
    assert f"{PLACES[command]} is being written by another process" in message
    assert f"process {os.getpid()} on " in message
    assert not list(home.glob("out/**/checkpoints"))


def test_of_two_studies_in_one_folder_the_second_is_refused_whatever_the_first_does(cli, home):
    with lock(home / "out", of=STUDY_FILE):
        message = cli.complaint("compare", "tiny.yaml", "--out", "out")
    assert "out is being written by another process" in message
    assert not (home / "out").exists()


def test_a_folder_that_is_taken_before_its_turn_is_refused(cli, home, monkeypatch):
    monkeypatch.setattr("ortholora.runs.train.check_unlocked", lambda folder: None)
    with lock(home / "out"):
        assert "is being written by another process" in cli.complaint("train", "tiny.yaml", "--out", "out")
    assert not list(home.glob("out/**/checkpoints"))


def test_a_run_holds_its_folder_until_its_result_is_there(cli, home, monkeypatch):
    locked, step = [], ProgressCallback.on_step_end

    def on_step_end(self, *args, **kwargs):
        locked.append((home / "out" / ".lock").exists())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ProgressCallback, "on_step_end", on_step_end)
    cli.ok("train", "tiny.yaml", "--out", "out", "--max-steps", 2)
    assert locked == [True, True]
    assert not (home / "out" / ".lock").exists()
    with lock(home / "out"):  # a finished run is read, not written
        assert "topic" in cli.ok("evaluate", "out")
