"""`compare`: the summary, what is kept, and what a study looks like to the next command."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from command_line import Cli

from tiny import tiny_config

TASKS = ["topic", "pair", "score"]
METHODS = [
    "ortho",
    {"name": "small", "rule": "ortho", "block": "layer", "set": {"lora.r": 2, "tasks.topic.weight": 2}},
    "my_rules:thirds",
]


@pytest.fixture(scope="module")
def finished(home_of_all, tmp_path_factory):
    """The folder of a finished study and what was printed; not to be changed."""
    home = tmp_path_factory.mktemp("study")
    shutil.copytree(home_of_all, home, dirs_exist_ok=True)
    config = tiny_config(home, "study", study={"methods": METHODS, "seeds": [0]}, training={"steps": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shown = Cli(home).ok("compare", config, "--out", "out")
    return home, shown


@pytest.fixture
def again(finished, home):
    """A copy of the study and its files, for this test to spoil."""
    shutil.copytree(finished[0] / "out", home / "out")
    shutil.copy(finished[0] / "study.yaml", home)
    return home / "out"


def adapters(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_the_summary(finished):
    home, _ = finished
    summary = json.loads((home / "out" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["methods"]) == ["single", "joint", "ortho", "small", "thirds"]
    for columns in summary["methods"].values():
        assert set(columns) == {*TASKS, "average"}
        for entry in columns.values():
            assert len(entry["values"]) == 1
            assert math.isfinite(entry["mean"])
            assert "std" in entry
    assert len(summary["gap"]["ci95"]) == 2
    assert math.isfinite(summary["gap"]["mean"])
    assert (summary["recovered"] is None) == bool(summary["recovered_reason"])
    for method in ("joint", "ortho"):
        assert summary["cost"][method]["step_seconds"] > 0
        assert summary["cost"][method]["peak_memory_bytes"] > 0
    origin = summary["provenance"]
    assert {"torch", "peft", "transformers"} <= set(origin["versions"])
    assert {"commit", "hardware", "config"} <= set(origin)
    assert "sha256:" in origin["data"]["topic"]["train"]
    assert origin["config"]["training"]["steps"] == 3


def test_what_is_printed_and_written(finished):
    home, shown = finished
    for word in (*TASKS, "average", "small", "thirds", "95 % interval"):
        assert word in shown
    text = (home / "out" / "summary.md").read_text(encoding="utf-8")
    assert "## Verdict" in text
    assert (home / "out" / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert str(home) not in text.replace(str(home / "backbone"), "")
    page = (home / "out" / "report.html").read_text(encoding="utf-8")
    assert "Where tasks conflict" in page
    assert 'class="heat"' in page
    assert str(home) not in page.replace(str(home / "backbone"), "")
    assert "report.html" in shown


def test_settings_of_one_methods_own_are_stated(finished):
    home, shown = finished
    text = (home / "out" / "summary.md").read_text(encoding="utf-8")
    for where in (shown, text):
        line = next(line for line in where.splitlines() if "small" in line and "settings" in line)
        assert "ortho" not in line
    assert "lora.r" in shown
    assert "lora.r" in text


def test_a_study_run_is_a_run(finished, cli):
    home, shown = finished
    run = home / "out" / "runs" / "single" / "seed-0" / "pair"
    scores = json.loads(cli.ok("evaluate", run, "--json"))
    assert list(scores) == ["pair"]
    small = home / "out" / "runs" / "small" / "seed-0"
    scores = json.loads(cli.ok("evaluate", small, "--json"))
    metrics = json.loads((small / "result.json").read_text(encoding="utf-8"))["metrics"]
    assert {task: values["main"] for task, values in scores.items()} == pytest.approx(metrics, abs=1e-6)
    suggested = next(line for line in shown.splitlines() if " predict " in line).split()
    assert (home / suggested[2]).is_dir()


def test_only_what_is_missing_is_run_again(again, cli):
    shutil.rmtree(again / "runs" / "joint" / "seed-0")
    (again / "summary.md").unlink()
    before = adapters(again)
    shown = cli.ok("compare", "study.yaml", "--out", "out")
    assert "6 of 7 runs are finished and kept" in shown
    after = adapters(again)
    assert {path for path in after if after[path] != before.get(path)} == {
        (again / "runs/joint/seed-0/result.json").relative_to(again)
    }
    assert (again / "summary.md").is_file()


def test_one_seed_more_keeps_the_finished_runs(again, cli):
    before = adapters(again)
    shown = cli.ok("compare", "study.yaml", "--out", "out", "--seeds", "0,1")
    assert "7 of 14 runs are finished and kept" in shown
    assert adapters(again).items() > before.items()
    summary = json.loads((again / "summary.json").read_text(encoding="utf-8"))
    assert summary["seeds"] == [0, 1]
    assert all(len(columns["average"]["values"]) == 2 for columns in summary["methods"].values())
    assert all(math.isfinite(columns["average"]["std"]) for columns in summary["methods"].values())


def test_another_configuration_is_refused_at_once(again, cli):
    before = adapters(again)
    message = cli.complaint("compare", "study.yaml", "--out", "out", "--set", "lora.alpha=3")
    assert "lora.alpha = 16.0 there, 3.0 here" in message
    assert adapters(again) == before


def test_a_damaged_result_is_named(again, cli):
    path = again / "runs" / "ortho" / "seed-0" / "predictions.npz"
    path.write_bytes(path.read_bytes()[:50])
    message = cli.complaint("compare", "study.yaml", "--out", "out")
    assert str(path.relative_to(again)) in message
    assert "finished runs are kept" in message


@pytest.mark.parametrize(
    ("methods", "parts"),
    [
        (["orhto"], ["'orhto'", "did you mean `ortho`"]),
        (["ortho", "ortho"], ["Two methods are called 'ortho'"]),
        ([{"name": "joint", "rule": "ortho"}], ["'joint'"]),
        (["my_rules:nothing"], ["nothing"]),
        (["no_such_module:rule"], ["No module named"]),
        ([{"name": "a/b"}], ["study.methods.0"]),
        ([{"name": "x", "set": {"lora.rr": 2}}], ["lora.rr"]),
        ([{"name": "x", "set": {"lora.r": "two"}}], ["lora.r"]),
        ([{"name": "x", "set": {"tasks.topic.max_train_rows": 5}}], ["tasks.topic.max_train_rows"]),
        ([{"name": "x", "set": {"rule": "sum"}}], ["rule"]),
        ([{"name": "x", "set": {"max_length": 12}}], ["max_length", "for one method alone"]),
        ([{"name": "x", "set": {"backbone": "other"}}], ["backbone", "for one method alone"]),
    ],
)
def test_methods_that_cannot_be(cli, home, methods, parts):
    config = tiny_config(home, "bad", study={"methods": methods})
    message = cli.complaint("compare", config, "--out", "out")
    assert all(part in message for part in parts), message
    assert not (home / "out").exists()


def test_one_task_only(cli, home):
    message = cli.complaint("compare", "tiny.yaml", "--out", "out", "--tasks", "pair")
    assert "nothing to compare" in message
    assert not (home / "out").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_rule_that_fails_names_itself(cli, home, command):
    (home / "bad_rules.py").write_text("1 / 0\n", encoding="utf-8")
    config = tiny_config(home, "bad", rule="bad_rules:x", study={"methods": ["bad_rules:x"]})
    assert "ZeroDivisionError" in cli.complaint(command, config, "--out", "out")


def test_joint_wide_has_the_rank_of_all_single_adapters_and_their_scaling(home):
    methods = ["joint-wide", "ortho"]
    config = tiny_config(home, study={"methods": methods, "seeds": [0]}, training={"steps": 2})
    Cli(home).ok("compare", config, "--out", "out")
    runs = home / "out" / "runs"
    found = {
        name: json.loads((runs / name / "seed-0" / "adapter_config.json").read_text()) for name in ("joint", methods[0])
    }
    assert (found["joint"]["r"], found["joint-wide"]["r"]) == (4, 12)
    assert found["joint"]["lora_alpha"] / 4 == found["joint-wide"]["lora_alpha"] / 12
    summary = json.loads((home / "out" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["methods"]) == ["single", "joint", "joint-wide", "ortho"]
    assert summary["recovered_method"] == "ortho"
    assert summary["conflict"]["joint-wide"] is None
