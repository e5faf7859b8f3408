"""`train` in several processes: one run, whoever is asked to stop, fails or is killed; the adapter of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import Cli, check_message
from safetensors.torch import load_file

from launcher import KILL, TERM, Ended, launch
from sharding_on_cpu import FSDP2
from tiny import tiny_config

pytestmark = pytest.mark.slow
TRAIN = ["train", "many.yaml", "--out", "out"]


@pytest.fixture(autouse=True)
def config(home: Path) -> Path:
    # Without dropout: every process draws its own.
    return tiny_config(home, "many", training={"save_every": 2}, lora={"dropout": 0.0}, head_dropout=0.0)


def assert_told_once(ended: list[Ended], code: int) -> str:
    """All ended with the code, and one of them said why, in one message."""
    assert [one.code for one in ended] == [code] * len(ended), [one.err for one in ended]
    (told,) = [one.err for one in ended if one.err]
    check_message(told)
    assert [one.out for one in ended[1:]] == [""] * (len(ended) - 1)
    return told


def torchrun(processes: int, *words: str) -> str:
    """What torchrun and its processes print."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "ortholora", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout


def test_three_are_stopped_and_two_go_on_to_the_adapter_of_one(home: Path) -> None:
    """Law 4, and law 5 across another number of processes."""
    stopped = launch(home, *[TRAIN] * 3, strike=(TERM, 2, 3))
    assert [one.code for one in stopped] == [130] * 3, [one.err for one in stopped]
    assert [one.err for one in stopped] == ["", "", ""]
    assert "Stopped in ortho · seed 0. Start the same command again" in stopped[0].out
    assert [one.out for one in stopped[1:]] == ["", ""]
    (kept,) = (home / "out" / "checkpoints").iterdir()
    assert kept.name == "checkpoint-3"
    assert {path.name for path in kept.glob("rng_state*")} == {f"rng_state_{rank}.pth" for rank in range(3)}
    assert not (home / "out" / ".lock").exists()

    shown = torchrun(2, *TRAIN)
    assert shown.count("going on from the checkpoint of step 3") == 1
    assert shown.count("Saved in out") == 1

    Cli(home).ok("train", "many.yaml", "--out", "one")
    one, many = ([load_file(home / run / name) for name in WEIGHTS] for run in ("one", "out"))
    for found, expected in zip(many, one, strict=True):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)
    results = [json.loads((home / run / "result.json").read_text(encoding="utf-8")) for run in ("one", "out")]
    assert results[1]["metrics"] == pytest.approx(results[0]["metrics"], abs=1e-4)
    assert [result["provenance"]["processes"] for result in results] == [1, 2]


WEIGHTS = ("adapter_model.safetensors", "heads.safetensors")


def test_a_killed_process_is_named_and_ends_the_others(home: Path) -> None:
    survivor, killed = launch(home, TRAIN, TRAIN, strike=(KILL, 1, 3))
    assert (survivor.code, killed.code) == (1, -KILL)
    check_message(survivor.err)
    assert "The training lost rank 1 of 2 (process " in survivor.err
    assert "goes on from the last checkpoint" in survivor.err
    assert [path.name for path in (home / "out" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (home / "out" / ".lock").exists()


def test_a_mistake_is_told_once(home: Path) -> None:
    told = assert_told_once(launch(home, *[[*TRAIN, "--set", "training.step=3"]] * 2), 2)
    assert "did you mean `training.steps`?" in told
    assert not (home / "out").exists()


def test_a_loss_that_is_no_number_ends_all(home: Path) -> None:
    ended = launch(home, *[[*TRAIN, "--set", "training.learning_rate=1e30"]] * 2)
    assert [one.code for one in ended] == [2, 2]
    (told,) = [one.err for one in ended if one.err]
    check_message(told)
    assert "became nan in step" in told


SHARDED = {"fsdp": True, "fsdp_config": {**FSDP2, "cpu_ram_efficient_loading": False}}


def test_a_sharded_base_on_a_cpu_is_refused_once_and_leaves_nothing(home: Path) -> None:
    """Accelerate would run DDP there, and say nothing."""
    tiny_config(home, "sharded", training={"arguments": SHARDED})
    told = assert_told_once(launch(home, *[["train", "sharded.yaml", "--out", "out"]] * 2), 2)
    assert "FSDP, which Accelerate leaves out on cpu" in told
    assert not (home / "out").exists()


def test_a_sharded_base_is_trained_and_saved_as_by_one(home: Path) -> None:
    """FSDP2; where it works: the state of Accelerate is told so."""
    tiny_config(home, "sharded", training={"arguments": SHARDED}, lora={"dropout": 0.0}, head_dropout=0.0)
    ended = launch(home, *[["--sharded", "train", "sharded.yaml", "--out", "out"]] * 2)
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    Cli(home).ok("train", "many.yaml", "--out", "one")
    for name in WEIGHTS:
        found, expected = load_file(home / "out" / name), load_file(home / "one" / name)
        assert found.keys() == expected.keys()
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, rtol=0, atol=2e-5)
    assert {path.name for path in (home / "out").iterdir()} == {path.name for path in (home / "one").iterdir()}


def test_what_one_process_does_is_refused(home: Path) -> None:
    told = assert_told_once(launch(home, *[["compare", "many.yaml", "--out", "out"]] * 2), 2)
    assert "`compare` is done by one process" in told
    assert "--jobs N" in told
    assert not (home / "out").exists()


def test_other_data_in_one_process_is_refused(home: Path) -> None:
    other = home / "other"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns("other", "*.out", "*.err"))
    rows = (other / "train-topic.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (other / "train-topic.tsv").write_text("".join(rows[:-1]), encoding="utf-8")
    out = ["train", "many.yaml", "--out", home / "out"]
    told = assert_told_once(launch(home, out, ["--in", other, *out]), 2)
    assert "other rows in the data files: process 1 on " in told
