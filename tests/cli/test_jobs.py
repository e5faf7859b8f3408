"""`compare --jobs 2`: the same results as one after the other, also after a stop or a kill; what a script is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from command_line import Cli
from worked_study import left_over, results, write_study

from ortholora.runs.record import read_record

#: A rule that once, after some steps, sends a signal to its own process or to another one.
RULES = """
import os, signal
from pathlib import Path
import torch

def rule(gram, context):
    told = Path("told")
    if told.exists() and (steps := told.read_text().split()):
        whom, number, left = steps[0], int(steps[1]), int(steps[2]) - 1
        told.write_text(f"{whom} {number} {left}" if left else "")
        if not left:
            os.kill(os.getpid() if whom == "self" else int(whom), number)
    return torch.ones(gram.shape[:2])
"""
RUNS = ["single/seed-0/topic", "single/seed-0/score", "joint/seed-0", "rule/seed-0"]


def study(folder: Path) -> list[str]:
    """Write the study into a folder; return the command but for `--out`."""
    (folder / "telling.py").write_text(RULES, encoding="utf-8")
    return write_study(folder, "jobs", ["telling:rule"])


@pytest.fixture(scope="module")
def one_by_one(home_of_all):
    """The folder of a study that was run with one job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home_of_all)
        Cli(home_of_all).ok(*study(home_of_all), "jobs-1")
    return home_of_all / "jobs-1"


@pytest.fixture
def command(home, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the tests have in this process
    return [*study(home), "out"]


@pytest.fixture
def all_but_the_rule(home, one_by_one):
    """The study with the rule's run still to do: one worker is enough."""
    shutil.copytree(one_by_one, home / "out")
    shutil.rmtree(home / "out/runs/rule")
    return home / "out"


@pytest.mark.usefixtures("forked_jobs")
def test_two_jobs_give_what_one_gives(cli, home, command, one_by_one):
    shown = cli(*command, "--jobs", 2, "--json")
    assert shown.exit_code == 0, shown.output
    assert "2 runs at once, 1 thread each" in shown.stderr
    assert all(f"✓ {label}" in shown.stderr for label in ("single · topic", "single · score", "joint", "rule"))
    assert results(home / "out", RUNS) == results(one_by_one, RUNS)
    for run in RUNS:
        origin, alone = (read_record(folder / "runs" / run).provenance for folder in (home / "out", one_by_one))
        assert (origin["jobs"], alone["jobs"]) == (2, 1)
        assert origin["hardware"] == alone["hardware"]
        assert origin["hardware"]["torch_threads"] == 1
    summary, other = (json.loads((f / "summary.json").read_text()) for f in (home / "out", one_by_one))
    assert summary.items() <= json.loads(shown.stdout).items()
    assert {k: summary[k] for k in ("methods", "gap", "rules")} == {k: other[k] for k in ("methods", "gap", "rules")}
    assert "(2 at once)" in (home / "out" / "summary.md").read_text(encoding="utf-8")
    assert "at once" not in (one_by_one / "summary.md").read_text(encoding="utf-8")
    assert not left_over(home / "out")


@pytest.mark.usefixtures("forked_jobs")
def test_a_stopped_worker_goes_on(cli, home, command, one_by_one, all_but_the_rule):
    (home / "told").write_text(f"{os.getpid()} {int(signal.SIGINT)} 3")
    stopped = cli(*command, "--jobs", 2, "--quiet")
    assert (stopped.exit_code, stopped.stdout) == (130, ""), stopped.output
    assert stopped.stderr == "Stopped in rule · seed 0. Start the same command again to go on.\n"
    run = all_but_the_rule / "runs/rule/seed-0"
    assert not (run / "result.json").exists()
    (saved,) = (run / "checkpoints").iterdir()
    assert saved.name in {"checkpoint-3", "checkpoint-4"}
    assert f"going on from the checkpoint of step {saved.name[-1]}" in cli.ok(*command)
    assert results(home / "out", RUNS) == results(one_by_one, RUNS)
    # Some of its steps were timed as one of two jobs.
    assert read_record(run).provenance["jobs"] == 2
    assert not left_over(home / "out")


def test_a_killed_worker_is_named_and_goes_on(cli, home, command, one_by_one, all_but_the_rule, capfd):
    """One that was spawned, as always outside of the tests."""
    (home / "told").write_text(f"self {int(signal.SIGKILL)} 4")
    message = cli.complaint(*command, "--jobs", 2, "--quiet")
    assert capfd.readouterr() == ("", "")  # its libraries are quiet from the first import on
    assert "rule · seed 0: its process ended before the run did" in message
    assert "SIGKILL" in message
    assert all((all_but_the_rule / "runs" / run / "result.json").is_file() for run in RUNS[:3])
    assert "rule · seed 0: going on from the checkpoint of step 2" in cli.ok(*command)
    assert results(home / "out", RUNS) == results(one_by_one, RUNS)
    assert not left_over(home / "out")
