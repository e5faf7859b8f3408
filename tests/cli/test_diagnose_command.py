"""`diagnose` as a user meets it."""

from __future__ import annotations

import json
import os
import shlex
import signal

import pytest
import yaml

from ortholora.study.diagnose import diagnose as diagnose_module
from ortholora.study.diagnose import training
from tiny import tiny_config

QUICK = ("--steps", 2, "--rows", 16)


def test_it_says_what_to_compare(cli, home):
    shown = cli.ok("diagnose", "tiny.yaml", *QUICK, "--tasks", "topic,pair", "--set", "seed=1", "--groups", 2)
    out = home / "runs" / "tiny-diagnosis"
    found = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert found["tasks"] == ["topic", "pair"]
    assert found["settings"]["seed"] == 1
    assert sorted(task for group in found["grouping"]["groups"] for task in group) == ["pair", "topic"]
    assert "Hardly tested against outcomes yet" in shown
    assert "Hardly tested against outcomes yet" in (out / "diagnosis.md").read_text(encoding="utf-8")
    assert found["headline"][:20] in shown
    assert found["verdict"][0].split()[0] in shown
    words = shlex.split(found["next"])
    assert words[:7] == ["ortholora", "compare", "tiny.yaml", "--tasks", "topic,pair", "--set", "seed=1"]
    assert found["next"] in shown
    assert found["again"] == (
        "ortholora diagnose tiny.yaml --tasks topic,pair --set seed=1 --steps 2 --rows 16 --groups 2"
    )
    assert {path.name for path in out.iterdir()} == {"diagnosis.json", "diagnosis.md", "report.html", "points"}
    from ortholora.config.choose import with_tasks
    from ortholora.config.file import load_config, with_settings
    from ortholora.study.methods import methods_of

    # What is advised can be done, also where groups of the two tasks are proposed.
    two = with_tasks(load_config(home / "tiny.yaml"), found["tasks"])
    methods_of(with_settings(two, yaml.safe_load(words[-1].replace("study.methods=", "study.methods: "))))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--rows", 7], ["--rows 8 or more"]),
        (["--rows", 64], ["'topic'", "use --rows 48"]),
        (["--steps", 7], ["--steps 7", "0 (the start as it is) to 6"]),
        (["--groups", 4], ["--groups 4", "2 to 3 groups"]),
        (["--tasks", "pair"], ["nothing to diagnose", "two tasks or more"]),
        (["--rows", 16, "--out", "train-topic.tsv"], ["train-topic.tsv cannot hold a diagnosis"]),
        (["--rows", 16, "--out", "train-topic.tsv/below"], ["could not be read or written"]),
    ],
)
def test_mistakes_are_one_message(cli, home, words, parts):
    message = cli.complaint("diagnose", "tiny.yaml", *words)
    assert all(part in message for part in parts), message
    assert not (home / "runs").exists()


def test_a_stop_says_how_to_go_on(cli, home, monkeypatch):
    step = training._Looks.on_step_end

    def on_step_end(self, *arguments, **more):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments, **more)

    words = ("diagnose", "tiny.yaml", *QUICK, "--out", "out", "--tasks", "topic,pair")
    with monkeypatch.context() as patch:
        patch.setattr(training._Looks, "on_step_end", on_step_end)
        result = cli(*words)
    assert result.exit_code == 130
    assert "Stopping after this step; finished points are kept. (Once more: stop at once.)" in result.stdout
    assert "Stopped in the joint training. Start the same command again to go on." in result.stdout
    assert list((home / "out" / "points").iterdir())
    assert "Wrote out/report.html" in cli.ok(*words)


def test_a_loss_that_is_not_finite(cli, home):
    config = tiny_config(home, "hot", training={"learning_rate": 1e30})
    message = cli.complaint("diagnose", config, "--steps", 6, "--rows", 16)
    assert "not finite" in message or "became" in message


def test_a_folder_that_may_not_be_written(cli, home, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "out/.lock")

    monkeypatch.setattr(diagnose_module, "lock", refuse)
    assert "Permission denied" in cli.complaint("diagnose", "tiny.yaml", *QUICK, "--out", "out")
