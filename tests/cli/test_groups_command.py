"""`groups`: a method of a study that trains an adapter for each group of tasks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from command_line import Cli

from ortholora.runs.record import read_record
from tiny import tiny_config

RATES = {"values": {"training.learning_rate": [1e-5, 0.02]}, "rows": 15, "seeds": [7]}
GROUPS = {"name": "two", "rule": "ortho", "groups": [["score", "topic"], ["pair"]]}


@pytest.fixture(scope="module")
def finished(home_of_all, tmp_path_factory):
    """The folder of a finished study with a sweep, and what was printed; not to be changed."""
    home = tmp_path_factory.mktemp("groups")
    shutil.copytree(home_of_all, home, dirs_exist_ok=True)
    study = {"methods": [GROUPS], "seeds": [0], "sweep": RATES}
    config = tiny_config(home, "study", training={"steps": 6}, study=study)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shown = Cli(home).ok("compare", config, "--out", "out")
    return home / "out", shown


def test_every_group_is_a_run_and_a_task_alone_is_trained_as_single_trains_it(finished):
    out, shown = finished
    together, alone = (read_record(out / "runs" / "two" / "seed-0" / f"group-{n}") for n in (1, 2))
    assert (together.tasks, alone.tasks) == (("topic", "score"), ("pair",))
    single = read_record(out / "runs" / "single" / "seed-0" / "pair")
    np.testing.assert_array_equal(alone.predictions["pair"], single.predictions["pair"])
    assert "two · topic, score · seed 0" in shown


def test_each_adapter_chooses_by_its_own_tasks(finished):
    out, _ = finished
    entry = json.loads((out / "sweep.json").read_text())["methods"]["two"]
    scores = [score["tasks"] for score in entry["scores"]]
    for group in (["topic", "score"], ["pair"]):
        means = [sum(score[task] for task in group) for score in scores]
        best = entry["scores"][int(np.argmax(means))]["settings"]
        assert [entry["chosen"][task] for task in group] == [best] * len(group)


def test_the_report_names_the_groups_and_counts_the_adapters(finished):
    out, shown = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rules"]["two"]["groups"] == [["topic", "score"], ["pair"]]
    assert summary["cost"]["two"]["adapters"] == 2
    assert "two trains 2 adapters, each on a group of tasks: topic and score; pair." in (out / "summary.md").read_text()
    assert list(summary["conflict"]["two"]["pairs"]) == ["topic~score"]
    assert "two/seed-0/group-1" in shown  # the adapter to try
    page = (out / "report.html").read_text()
    assert "one adapter, too (of <code>two</code>: one for each group of tasks)" in page


def test_a_stopped_study_tells_which_group_is_missing(finished, tmp_path):
    out = tmp_path / "half"
    shutil.copytree(finished[0], out)
    (out / "summary.json").unlink()
    shutil.rmtree(out / "runs" / "two" / "seed-0" / "group-2")
    Cli(tmp_path).ok("report", "half")
    assert "two (pair), seed 0" in (out / "report.html").read_text()
