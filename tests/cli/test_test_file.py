"""A `test` file of a task: chosen on dev, scored on test, said in every place."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from ortholora.runs.record import read_record
from tiny import tiny_config


def with_test(home, *names, out="tested", **sections):
    """A configuration in which these tasks have test files: other rows than dev's, and fewer."""
    path = tiny_config(home, out, **sections)
    settings = yaml.safe_load(path.read_text())
    for task in settings["tasks"]:
        if task["name"] in names:
            file = home / task["dev"]
            lines = file.read_text().splitlines(keepends=True)
            task["test"] = f"test-{task['name']}{file.suffix}"
            (home / task["test"]).write_text("".join([*lines[: 20 + (file.suffix != ".jsonl")]]))
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def swap_labels(path):
    """Every answer of a file of pairs is wrong."""
    path.write_text(path.read_text().replace(",yes", ",?").replace(",no", ",yes").replace(",?", ",no"))


@pytest.fixture
def small(home):
    """Two short runs, to look at what they say."""
    return {"training": {"steps": 2, "eval_every": 1, "save_every": 1, "selection": "best"}, "study": {"methods": []}}


def test_train_and_evaluate(cli, home, small):
    config = with_test(home, "topic", "pair", **small)
    shown = cli.ok("train", config, "--out", "out")
    assert "96 training, 48 dev and 20 test rows" in shown
    assert "Dev results (test results: topic, pair)" in shown
    record = read_record(home / "out")
    assert {task: len(rows) for task, rows in record.targets.items()} == {"topic": 20, "pair": 20, "score": 48}
    assert record.scored_on == {"topic": "test", "pair": "test", "score": "dev"}
    assert set(record.dev_metrics) == {"topic", "pair"}
    data = record.provenance["data"]
    assert data["topic"]["rows"] == [96, 48, 20]
    assert data["topic"]["test"].startswith("test-topic.tsv sha256:")
    assert "test" not in data["score"]
    # The curve that chooses is dev's: its best point is what the kept model reaches on dev.
    curves = {task: max(value for _, value in curve) for task, curve in record.curves["metric"].items()}
    assert all(record.dev_metrics[task] <= curves[task] + 1e-9 for task in record.dev_metrics)
    scores = json.loads(cli.ok("evaluate", "out", "--json"))
    assert {task: values["main"] for task, values in scores.items()} == pytest.approx(record.metrics, abs=1e-6)
    assert "Dev results (test results: topic, pair)" in " ".join(cli.ok("evaluate", "out").split())


def test_choosing_does_not_see_it(cli, home, small):
    """The same adapter whatever is in the test file: only the score differs."""
    small["study"] = {}
    config = with_test(home, "pair", **small)
    cli.ok("train", config, "--out", "one")
    cli.ok("train", config, "--out", "plain", "--set", "tasks.pair.test=null")
    swap_labels(home / "test-pair.csv")
    cli.ok("train", config, "--out", "two")
    one, two, plain = (read_record(home / name) for name in ("one", "two", "plain"))
    kept = {name: (home / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two", "plain")}
    assert len(set(kept.values())) == 1
    assert one.dev_metrics == two.dev_metrics == {"pair": plain.metrics["pair"]}
    assert one.targets["pair"].tolist() == (1 - two.targets["pair"]).tolist()
    assert plain.dev_metrics == {}


def test_compare_says_on_what_it_scored(cli, home, small):
    config = with_test(home, "topic", "pair", "score", **small)
    shown = cli.ok("compare", config, "--out", "out", "--tasks", "topic,pair")
    assert "All is scored on the test rows" in " ".join(shown.split())
    summary = json.loads((home / "out" / "summary.json").read_text())
    assert {task: (entry["rows"], entry["scored_on"]) for task, entry in summary["tasks"].items()} == {
        "topic": (20, "test"),
        "pair": (20, "test"),
    }
    joint = read_record(home / "out" / "runs" / "joint" / "seed-0")
    assert summary["methods"]["joint"]["topic"]["values"] == pytest.approx([joint.metrics["topic"]])
    assert summary["on_dev"]["joint"]["topic"]["values"] == pytest.approx([joint.dev_metrics["topic"]])
    text = (home / "out" / "summary.md").read_text()
    assert "| on dev, to choose by | single | joint |" in text
    assert "Checkpoints were chosen on the rows they are scored on" not in text


def test_a_folder_without_it_is_another_runs(cli, home, trained):
    """Finished runs without test files are known as ever; with one the folder is refused, and nothing is lost."""
    shutil.copytree(trained, home / "out")
    before = (home / "out" / "result.json").read_bytes()
    cli.ok("train", home / "tiny.yaml", "--out", "out")
    message = cli.complaint("train", with_test(home, "topic"), "--out", "out")
    assert "tasks.topic.test = nothing there, 'test-topic.tsv' here" in message
    assert (home / "out" / "result.json").read_bytes() == before


@pytest.mark.parametrize("command", ["train", "compare"])
def test_one_without_labels_is_refused_before_any_training(cli, home, command):
    config = with_test(home, "topic")
    (home / "test-topic.tsv").write_text("text\nthe goal\n")
    message = cli.complaint(command, config, "--out", "out")
    assert "the test part" in message
    assert "has no labels" in message
    assert not (home / "out").exists()
