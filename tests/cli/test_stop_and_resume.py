"""A command that is stopped, killed or out of disk goes on where it was, and ends with the same adapter."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import Cli, check_message
from worked_study import left_over, resumable

from launcher import KILL, limit_files, run, strike_at_save
from ortholora.models.saving import save_model
from ortholora.runs.progress import ProgressCallback

#: `ortholora`, as from a shell, in a process that sends itself a signal after the thirteenth step of all its runs.
STOPPED = """
import logging, os, signal
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as the command line does before it imports anything
from ortholora.runs.progress import ProgressCallback
seen, step = 0, ProgressCallback.on_step_end
def on_step_end(self, *args, **kwargs):
    global seen
    seen += 1
    if seen == 13:
        os.kill(os.getpid(), signal.SIGINT)
    return step(self, *args, **kwargs)
ProgressCallback.on_step_end = on_step_end
from ortholora.__main__ import main
main()
"""


def start(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def weights(folder: Path) -> dict[str, bytes]:
    """Adapters and heads of all finished runs, byte for byte; checkpoints are left out."""
    paths = [path for path in folder.rglob("*.safetensors") if "checkpoints" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def interrupt(monkeypatch: pytest.MonkeyPatch, *after: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal after these steps, counted over all runs."""
    seen = 0
    step = ProgressCallback.on_step_end

    def on_step_end(self, *args, **kwargs):
        nonlocal seen
        seen += 1
        if seen in after:
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ProgressCallback, "on_step_end", on_step_end)


STUDY = ["compare", "resume.yaml", "--out", "out", "--tasks", "topic,score"]
TRAIN = ["train", "resume.yaml", "--out", "out", "--tasks", "topic,score"]


@pytest.fixture(scope="module")
def uninterrupted(home_of_all):
    """Weights of a study that nothing disturbed."""
    resumable(home_of_all, "resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home_of_all)
        Cli(home_of_all).ok(*[word.replace("out", "whole") if word == "out" else word for word in STUDY])
    return weights(home_of_all / "whole")


@pytest.fixture
def trained_weights(uninterrupted):
    """What `train` must end with: the weights of the study's run of ortho."""
    prefix = "runs/ortho/seed-0/"
    return {key.removeprefix(prefix): value for key, value in uninterrupted.items() if key.startswith(prefix)}


@pytest.fixture(autouse=True)
def config(uninterrupted, home):
    return resumable(home, "resume")


def test_an_interrupted_study_resumes(cli, home, uninterrupted):
    # Step 3 of the third run, joint.
    stopped = start(STOPPED, *STUDY)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == ""
    assert "joint · seed 0: 5 steps" in stopped.stdout
    assert "Stopped in joint · seed 0. Start the same command again" in stopped.stdout
    assert [path.name for path in (home / "out/runs/joint/seed-0/checkpoints").iterdir()] == ["checkpoint-3"]
    shown = cli.ok(*STUDY)
    assert "2 of 4 runs are finished and kept" in shown
    assert "going on from the checkpoint of step 3" in shown
    assert weights(home / "out") == uninterrupted
    assert not left_over(home / "out")


def test_a_study_killed_while_saving_resumes(cli, home, uninterrupted):
    # Four calls of torch.save a checkpoint, three checkpoints a run: the second of the last run, ortho.
    killed = run(home, STUDY, (strike_at_save, (KILL, 3 * 12 + 4 + 2)))
    assert killed.code == -KILL
    folder = home / "out/runs/ortho/seed-0/checkpoints"
    assert {path.name for path in folder.iterdir()} == {".saving", "checkpoint-2"}
    assert "going on from the checkpoint of step 2" in cli.ok(*STUDY)
    assert weights(home / "out") == uninterrupted
    assert not left_over(home / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes(cli, home, monkeypatch, trained_weights, number):
    with monkeypatch.context() as patch:
        interrupt(patch, 3, number=number)
        result = cli(*TRAIN)
    assert result.exit_code == 130
    assert "Stopped in ortho · seed 0" in result.stdout
    assert signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}
    cli.ok(*TRAIN)
    assert weights(home / "out") == trained_weights


def test_a_second_interrupt_stops_at_once(cli, home, monkeypatch, trained_weights):
    def impatient(folder, model, card):
        save_model(folder, model, card)
        if folder.name == "checkpoint-3":
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        patch.setattr("ortholora.trainers.saving.save_model", impatient)
        result = cli(*TRAIN)
    assert [path.name for path in (home / "out" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert result.exit_code == 130
    assert "Stopped." in result.stderr
    cli.ok(*TRAIN)
    assert weights(home / "out") == trained_weights


def test_a_real_full_disk(cli, home, monkeypatch, trained_weights):
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        cli(*TRAIN)
    # From here on no file may grow beyond 20 000 bytes; a checkpoint's optimizer state is larger.
    full = run(home, TRAIN, (limit_files, (20_000,)))
    assert full.code == 2, full.err
    check_message(full.err)
    assert "checkpoint of step 4" in full.err
    assert "it goes on from checkpoint-3" in full.err
    assert [path.name for path in (home / "out/checkpoints").iterdir()] == ["checkpoint-3"]
    assert not left_over(home / "out")
    cli.ok(*TRAIN)
    assert weights(home / "out") == trained_weights


@pytest.mark.parametrize("call", [1, 4, 5, 8])
def test_no_space_at_any_write_of_a_checkpoint(cli, home, monkeypatch, trained_weights, call):
    seen, save = 0, torch.save

    def full(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        message = cli.complaint(*TRAIN)
    assert "No space left on device" in message
    assert ("goes on from checkpoint-2" if call > 4 else "no checkpoint was written before") in message
    assert not left_over(home / "out")
    cli.ok(*TRAIN)
    assert weights(home / "out") == trained_weights


@pytest.mark.parametrize("name", ["ortholora.runs.publish.save_model", "numpy.savez_compressed"])
def test_no_space_for_the_result(cli, home, monkeypatch, trained_weights, name):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(name, full)
        assert "No space left on device" in cli.complaint(*TRAIN)
    assert not (home / "out" / "result.json").exists()
    assert not left_over(home / "out")
    cli.ok(*TRAIN)
    assert weights(home / "out") == trained_weights


def test_a_damaged_checkpoint_says_what_to_delete(cli, home, monkeypatch, trained_weights):
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        cli(*TRAIN)
    path = home / "out" / "checkpoints" / "checkpoint-3" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:100])
    assert "checkpoint-3" in cli.complaint(*TRAIN)
    shutil.rmtree(path.parent)
    cli.ok(*TRAIN)
    assert weights(home / "out") == trained_weights


def test_a_loss_that_is_no_number(cli, home):
    words = ["train", "tiny.yaml", "--out", "out", "--set", "training.learning_rate=1e30"]
    message = cli.complaint(*words, "--set", "training.save_every=1")
    assert "step " in message
    assert any(f"task '{name}'" in message for name in ("topic", "pair", "score"))
    kept = sorted((home / "out" / "checkpoints").iterdir())
    assert all((path / "trainer_state.json").is_file() for path in kept)
    assert not (home / "out" / "result.json").exists()


def test_a_rule_that_returns_no_numbers_is_named_before_it_ruins_a_checkpoint(cli, home):
    words = ["train", "tiny.yaml", "--out", "out", "--set", "rule=my_rules:broken"]
    message = cli.complaint(*words, "--set", "training.save_every=1")
    assert "broken" in message
    assert "NaN or infinite weights" in message
    assert not list((home / "out").glob("checkpoints/checkpoint-*"))
    assert not (home / "out" / "result.json").exists()
