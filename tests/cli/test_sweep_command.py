"""`study.sweep`: every method is given its own settings, chosen on rows that nothing else sees."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest
from command_line import Cli

from ortholora.config.file import load_config
from ortholora.data.read import read_tasks
from ortholora.runs.progress import ProgressCallback
from ortholora.runs.record import read_record
from ortholora.study.sweep.rows import cut_rows
from tiny import tiny_config

TASKS = ["topic", "pair", "score"]
SWEEP = {"values": {"training.learning_rate": [1e-5, 0.02]}, "rows": 15, "seeds": [7]}
METHODS = ["single", "joint", "ortho"]


def study(home, sweep=SWEEP, name="study", **sections):
    return tiny_config(home, name, study={"methods": METHODS, "seeds": [0], "sweep": sweep}, **sections)


@pytest.fixture(scope="module")
def finished(home_of_all, tmp_path_factory):
    """The folder of a finished study with a sweep and what was printed; not to be changed."""
    home = tmp_path_factory.mktemp("sweep")
    shutil.copytree(home_of_all, home, dirs_exist_ok=True)
    config = study(home, training={"steps": 12, "save_every": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shown = Cli(home).ok("compare", config, "--out", "out")
    return home, shown


def go_back(finished, out, *undone):
    """Copy the finished study as it was before these of its folders, the choice and the summary were made."""
    shutil.copytree(finished / "out", out)
    for folder in undone:
        shutil.rmtree(out / folder)
    for path in out.iterdir():
        if path.is_file():
            path.unlink()


def adapters(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("adapter_model.safetensors"))}


def test_every_method_is_tried_with_every_value(finished):
    home, _ = finished
    for method in METHODS:
        for value in ("learning_rate-1e-05", "learning_rate-0.02"):
            found = sorted(p.parent.name for p in (home / "out" / "sweep" / method / value).rglob("result.json"))
            assert found == (sorted(TASKS) if method == "single" else ["seed-7"])
    # Nobody goes on from a trial; the runs of the study keep theirs as ever.
    assert not list((home / "out" / "sweep").rglob("checkpoint-*"))
    assert list((home / "out" / "runs").rglob("checkpoint-*"))


def test_the_choice_is_the_best_on_the_cut_rows(finished):
    home, shown = finished
    sweep = json.loads((home / "out" / "sweep.json").read_text())
    summary = json.loads((home / "out" / "summary.json").read_text())
    assert summary["sweep"] == sweep
    for method in METHODS:
        entry = sweep["methods"][method]
        assert [score["settings"]["training.learning_rate"] for score in entry["scores"]] == [1e-5, 0.02]
        for name, settings in entry["chosen"].items():
            points = [s["average"] if name == "average" else s["tasks"][name] for s in entry["scores"]]
            assert settings == entry["scores"][int(np.argmax(points))]["settings"]
        assert list(entry["chosen"]) == (TASKS if method == "single" else ["average"])
        assert f"{method}: chosen learning_rate" in shown
    # Twelve steps at 1e-5 learn nothing: the choice is no accident.
    assert sweep["methods"]["joint"]["chosen"]["average"] == {"training.learning_rate": 0.02}
    joint = read_record(home / "out" / "sweep" / "joint" / "learning_rate-0.02" / "seed-7")
    assert sweep["methods"]["joint"]["scores"][1]["tasks"] == pytest.approx(joint.metrics)


def test_the_runs_of_the_study_use_the_choice_and_never_see_the_cut_rows(finished):
    home, _ = finished
    config = load_config(home / "study.yaml")
    tasks = read_tasks(config, base=home, data_dir=None)
    kept, trial = cut_rows(tasks, 15, config.data_seed)
    for whole, study_task, trial_task in zip(tasks, kept, trial, strict=True):
        assert len(trial_task.dev) == 15
        assert sorted([*study_task.train.texts, *trial_task.dev.texts]) == sorted(whole.train.texts)
        assert trial_task.train == study_task.train
        assert study_task.dev == whole.dev
    # Class by class: 96 rows of three topics, 32 each.
    assert np.bincount(trial[0].dev.targets).tolist() == [5, 5, 5]
    for method in ("joint", "ortho"):
        record = read_record(home / "out" / "runs" / method / "seed-0")
        assert record.provenance["settings"] == {"training.learning_rate": 0.02}
        assert record.provenance["config"]["training"]["learning_rate"] == 0.02
        assert record.provenance["data"]["topic"]["rows"] == [81, 48]
        assert "without 15 rows" in record.provenance["data"]["topic"]["train"]
    chosen = json.loads((home / "out" / "sweep.json").read_text())["methods"]["single"]["chosen"]
    for task in TASKS:
        assert read_record(home / "out" / "runs" / "single" / "seed-0" / task).provenance["settings"] == chosen[task]


def test_the_report_shows_it(finished):
    home, _ = finished
    text = (home / "out" / "summary.md").read_text()
    assert "## What each method was given" in text
    assert "| learning_rate 0.02 |" in text
    assert "settings of its own" not in text  # everybody had them
    assert (home / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_kept_and_a_further_value_is_tried_alone(finished, home):
    shutil.copytree(finished[0] / "out", home / "out")
    before = {p: p.stat().st_mtime_ns for p in (home / "out").rglob("result.json")}
    values = "study.sweep.values={training.learning_rate: [1e-5, 0.02, 2e-5]}"
    Cli(home).ok("compare", finished[0] / "study.yaml", "--out", "out", "--set", values)
    after = {p: p.stat().st_mtime_ns for p in (home / "out").rglob("result.json")}
    assert {p: t for p, t in after.items() if p in before} == before
    new = {p.relative_to(home / "out").parts[2] for p in after.keys() - before.keys()}
    assert new == {"learning_rate-2e-05"}


def test_a_method_that_is_added_later_is_the_only_one_trained(finished, home):
    """In the sweep and in the study, wherever it stands in the list; the summary then holds all."""
    shutil.copytree(finished[0] / "out", home / "out")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (home / "out").rglob("result.json")}
    methods = "study.methods=[balanced, single, joint, ortho]"
    shown = Cli(home).ok("compare", finished[0] / "study.yaml", "--out", "out", "--set", methods)
    assert "15 of 18 runs are finished and kept" in shown
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (home / "out").rglob("result.json")}
    assert {p: found for p, found in after.items() if p in before} == before
    new = sorted("/".join(p.relative_to(home / "out").parts[:2]) for p in after.keys() - before.keys())
    assert new == ["runs/balanced", "sweep/balanced", "sweep/balanced"]
    summary = json.loads((home / "out" / "summary.json").read_text())
    everybody = ["single", "joint", "balanced", "ortho"]
    assert list(summary["methods"]) == everybody
    assert list(summary["sweep"]["methods"]) == everybody
    kept = json.loads((finished[0] / "out" / "summary.json").read_text())
    assert {name: summary["methods"][name] for name in METHODS} == kept["methods"]
    assert {name: summary["sweep"]["methods"][name] for name in METHODS} == kept["sweep"]["methods"]


def test_a_stopped_sweep_goes_on_to_the_same_choice(finished, home, monkeypatch):
    """Stopped in the eighth of ten trials and in the second run of the study."""
    seen, step = 0, ProgressCallback.on_step_end

    def on_step_end(self, *args, **kwargs):
        nonlocal seen
        seen += 1
        if seen in (5, 4 * 12 + 5):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ProgressCallback, "on_step_end", on_step_end)
    go_back(finished[0], home / "out", "sweep/joint/learning_rate-0.02", "sweep/ortho", "runs")
    command = ["compare", finished[0] / "study.yaml", "--out", "out"]
    stopped = Cli(home)(*command)
    assert (stopped.exit_code, (home / "out" / "sweep.json").exists()) == (130, False), stopped.output
    assert "Stopped in joint · learning_rate 0.02 · seed 7" in stopped.stdout
    assert list((home / "out" / "sweep" / "joint" / "learning_rate-0.02" / "seed-7").rglob("checkpoint-5"))
    assert "Stopped in single · pair · seed 0" in Cli(home)(*command).stdout
    assert "of 15 runs are finished and kept" in Cli(home).ok(*command)
    assert adapters(home / "out") == adapters(finished[0] / "out")
    assert (home / "out" / "sweep.json").read_bytes() == (finished[0] / "out" / "sweep.json").read_bytes()


def test_dev_rows_do_not_choose(home):
    """Every answer among the dev rows is wrong: who learns the most is the worst there, and still chosen."""
    path = home / "dev-topic.tsv"
    text = path.read_text()
    for word, other in (("\tsport", "\t?"), ("\tmoney", "\tsport"), ("\tspace", "\tmoney"), ("\t?", "\tspace")):
        text = text.replace(word, other)
    path.write_text(text)
    path = home / "dev-pair.csv"
    path.write_text(path.read_text().replace(",yes", ",?").replace(",no", ",yes").replace(",?", ",no"))
    training = {"steps": 16, "save_every": 16}
    config = tiny_config(home, "study", study={"methods": ["joint"], "seeds": [0], "sweep": SWEEP}, training=training)
    Cli(home).ok("compare", config, "--out", "out", "--tasks", "topic,pair")
    entry = json.loads((home / "out" / "sweep.json").read_text())["methods"]["joint"]
    low, high = (score["average"] for score in entry["scores"])
    assert entry["chosen"] == {"average": {"training.learning_rate": 0.02}}
    assert high > low
    command = ("train", config, "--out", "low", "--tasks", "topic,pair", "--set", "training.learning_rate=1e-5")
    Cli(home).ok(*command, "--set", "rule=sum")
    on_dev = [read_record(home / folder).metrics for folder in ("low", "out/runs/joint/seed-0")]
    unlearned, learned = (np.mean(list(metrics.values())) for metrics in on_dev)
    assert learned < unlearned


def test_runs_with_an_earlier_choice_are_named(finished, home):
    shutil.copytree(finished[0] / "out", home / "out")
    path = home / "out" / "sweep" / "joint" / "learning_rate-0.02" / "seed-7" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "metrics": dict.fromkeys(result["metrics"], -1.0)}))
    command = ["compare", finished[0] / "study.yaml", "--out", "out"]
    message = Cli(home).complaint(*command)
    assert "now chooses other settings for joint than" in message
    assert "runs/joint/seed-0" in message
    shutil.rmtree(home / "out" / "runs" / "joint")
    assert "14 of 15 runs are finished and kept" in Cli(home).ok(*command)


def test_runs_without_the_sweep_are_refused_before_it(home):
    config = tiny_config(home, "study", study={"methods": METHODS, "seeds": [0]}, training={"steps": 2})
    Cli(home).ok("compare", config, "--out", "out", "--tasks", "topic,score")
    config = study(home, training={"steps": 2})
    message = Cli(home).complaint("compare", config, "--out", "out", "--tasks", "topic,score")
    assert "holds a run with other settings or other data" in message
    assert not (home / "out" / "sweep").exists()


@pytest.mark.usefixtures("forked_jobs")
def test_two_at_once_give_the_same(finished, home):
    """Two trials, then two runs; the others are kept."""
    go_back(finished[0], home / "out", "sweep/joint", "runs/joint", "runs/single/seed-0/pair")
    shown = Cli(home).ok("compare", finished[0] / "study.yaml", "--out", "out", "--jobs", "2")
    assert "11 of 15 runs are finished and kept" in shown
    assert "2 runs at once" in shown
    assert adapters(home / "out") == adapters(finished[0] / "out")
    assert (home / "out" / "sweep.json").read_bytes() == (finished[0] / "out" / "sweep.json").read_bytes()


def diverging(home, other):
    """The command of a study of two tasks in which the first of two learning rates makes the loss infinite."""
    sweep = {**SWEEP, "values": {"training.learning_rate": [1e30, other]}}
    config = study(home, sweep, training={"steps": 4, "max_grad_norm": 0})
    return ["compare", config, "--out", "out", "--tasks", "topic,score"]


def test_a_value_that_diverges_is_an_answer(home):
    """1e30 makes the loss infinite: it is never chosen, the study goes on, and the trial is not made again."""
    command = diverging(home, 0.01)
    Cli(home).ok(*command)
    entry = json.loads((home / "out" / "sweep.json").read_text())["methods"]["joint"]
    assert entry["scores"][0]["average"] is None
    assert entry["chosen"] == {"average": {"training.learning_rate": 0.01}}
    assert "not finite" in (home / "out" / "summary.md").read_text()
    marks = list((home / "out" / "sweep").rglob("diverged.json"))
    times = {p: p.stat().st_mtime_ns for p in marks}
    assert times
    assert "12 of 12 runs are finished and kept" in Cli(home).ok(*command)
    assert {p: p.stat().st_mtime_ns for p in (home / "out" / "sweep").rglob("diverged.json")} == times


def test_where_every_value_diverges_the_message_says_what_to_do(home):
    command = diverging(home, 2e30)
    assert "add lower learning rates" in Cli(home).complaint(*command)
    # What diverged with other settings is tried again, as they may be the remedy.
    before = {path: path.read_bytes() for path in (home / "out").rglob("diverged.json")}
    assert before
    Cli(home).complaint(*command, "--set", "training.weight_decay=0.5")
    assert all(path.read_bytes() != content for path, content in before.items())


RATE = "training.learning_rate"


def test_a_value_with_which_nothing_can_be_captured_is_refused_before_training(home):
    """DoRA takes micro-batches of one task only."""
    sweep = {**SWEEP, "values": {"lora.options.use_dora": [False, True]}}
    message = Cli(home).complaint("compare", study(home, sweep, mixing={"layout": "mixed"}), "--out", "out")
    assert "cannot be split by row" in message
    assert "`mixing.layout: mixed`" in message
    assert not list((home / "out").rglob("result.json"))


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"values": {"training.learning_rat": [1, 2]}}, "learning_rate"),
        ({"values": {"rule": ["ortho", "sum"]}}, "cannot be chosen for each method"),
        ({"values": {"study.seeds": [[1], [2]]}}, "cannot be chosen for each method"),
        ({"values": {RATE: [0.1]}}, "two different values or more"),
        ({"values": {RATE: []}}, "two different values or more"),
        ({"values": {RATE: [0.1, 0.1]}}, "two different values or more"),
        ({"values": {RATE: [0.1, -1]}}, "greater than 0"),
        ({"values": {RATE: [0.1, "fast"]}}, "number"),
        ({"values": {}}, "study.sweep.values"),
        ({"values": {RATE: [0.1, 0.2]}, "seeds": [0]}, "none of them among `study.seeds`"),
        ({"values": {RATE: [0.1, 0.2]}, "rows": 1}, "study.sweep.rows"),
        ({"values": {"lora.target_modules": ["no-such-module", "all-linear"]}}, "no-such-module"),
        ({"values": {"training.warmup_steps": [0, 100]}}, "warmup_steps"),
        ({"values": {f"{RATE}, lora.r": [[0.1, 4], 0.2]}}, "a list of 2 values, one for each of them"),
        ({"values": {f"{RATE}, lora.r": [[0.1, 4], [0.2]]}}, "write each as [LEARNING_RATE, R]"),
        ({"values": {f"{RATE}, lora.r": [[0.1, 4], [0.2, 8]], RATE: [0.1, 0.2]}}, "'training.learning_rate' twice"),
        ({"values": {f"{RATE}, lora.rr": [[0.1, 4], [0.2, 8]]}}, "lora.rr"),
        ({"values": {f"{RATE}, study.merge.scale": [[0.1, 1], [0.2, 2]]}}, "cannot move together with others"),
    ],
)
def test_bad_values_are_refused_before_any_training(home, sweep, words):
    assert words in Cli(home).complaint("compare", study(home, sweep), "--out", "out")
    assert not list((home / "out").rglob("adapter_model.safetensors"))


def test_a_method_must_not_set_what_is_swept(home):
    method = {"name": "fast", "rule": "ortho", "set": {RATE: 0.1}}
    config = tiny_config(home, study={"methods": [method], "sweep": SWEEP})
    assert "sets 'training.learning_rate' itself" in Cli(home).complaint("compare", config, "--out", "out")


def test_a_task_with_few_rows_is_refused(home):
    config = study(home)
    lines = (home / "train-topic.tsv").read_text().splitlines()
    (home / "train-topic.tsv").write_text("\n".join(lines[:40]) + "\n")
    assert "too few training rows to choose on" in Cli(home).complaint("compare", config, "--out", "out")
