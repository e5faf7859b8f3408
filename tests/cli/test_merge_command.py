"""`merge-linear`, `merge-ties` and `merge-dare` in a study: one adapter out of the single ones, scored like all."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from command_line import Cli
from peft import PeftModel
from safetensors.torch import load_file

from ortholora.models.backbone import load_encoder
from ortholora.runs.record import read_record
from tiny import tiny_config

TASKS = ["topic", "score"]
OF_TASKS = ("--tasks", "topic,score")
MERGES = ["merge-linear", "merge-ties", "merge-dare"]
RATE = "training.learning_rate"
SWEEP = {"values": {"lora.r": [2, 4], "study.merge.scale": [0.3, 1.0]}, "rows": 15, "seeds": [7]}


def study(home, name="study", **sections):
    sections = {"training": {"steps": 4}, "lora": {"rslora": True}, **sections}
    return tiny_config(home, name, **sections)


@pytest.fixture(scope="module")
def finished(home_of_all, tmp_path_factory):
    """A finished study with a sweep, in which tasks may have chosen other ranks; not to be changed."""
    home = tmp_path_factory.mktemp("merges")
    shutil.copytree(home_of_all, home, dirs_exist_ok=True)
    config = study(home, study={"methods": MERGES, "seeds": [0], "sweep": SWEEP})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        shown = Cli(home).ok("compare", config, "--out", "out", *OF_TASKS)
    return home, shown


def deltas(folder, home):
    """What PEFT adds to the weights of the backbone when it merges the adapter into it."""
    before = dict(load_encoder(str(home / "backbone"), torch.float32).named_parameters())
    bare = load_encoder(str(home / "backbone"), torch.float32)
    after = PeftModel.from_pretrained(bare, str(folder)).merge_and_unload()
    return {name: (weight - before[name]).detach() for name, weight in after.named_parameters()}


def test_the_merge_is_of_the_singles_of_its_seed_with_their_own_choice(finished):
    home, _ = finished
    out = home / "out"
    sweep = json.loads((out / "sweep.json").read_text())["methods"]
    (chosen,) = sweep["merge-linear"]["chosen"].values()
    record = read_record(out / "runs" / "merge-linear" / "seed-0")
    about = record.provenance["merge"]
    assert chosen == {"study.merge.scale": about["scale"]}
    assert about["singles"] == sweep["single"]["chosen"]
    assert about["rank"] == sum(settings["lora.r"] for settings in about["singles"].values())
    singles = [deltas(out / "runs" / "single" / "seed-0" / task, home) for task in TASKS]
    for name, delta in deltas(out / "runs" / "merge-linear" / "seed-0", home).items():
        expected = about["scale"] * sum(single[name] for single in singles)
        torch.testing.assert_close(delta, expected, atol=1e-5, rtol=1e-3)


def test_every_task_keeps_the_head_of_its_own_adapter(finished):
    out = finished[0] / "out" / "runs"
    for method in MERGES:
        heads = load_file(out / method / "seed-0" / "heads.safetensors")
        for task in TASKS:
            own = load_file(out / "single" / "seed-0" / task / "heads.safetensors")
            assert all(torch.equal(heads[name], weight) for name, weight in own.items())


def test_it_is_tried_on_the_cut_rows_with_the_trials_that_single_chose(finished):
    out = finished[0] / "out"
    sweep = json.loads((out / "sweep.json").read_text())["methods"]
    for method in MERGES:
        assert [score["settings"] for score in sweep[method]["scores"]] == [
            {"study.merge.scale": 0.3},
            {"study.merge.scale": 1.0},
        ]
        best = max(sweep[method]["scores"], key=lambda score: score["average"])
        assert sweep[method]["chosen"] == {"average": best["settings"]}
        trial = read_record(out / "sweep" / method / "scale-0.3" / "seed-7")
        assert {task: len(rows) for task, rows in trial.targets.items()} == dict.fromkeys(TASKS, 15)
    assert len(sweep["single"]["scores"]) == len(sweep["joint"]["scores"]) == 2


def test_the_report_has_them_like_the_others(finished):
    home, shown = finished
    summary = json.loads((home / "out" / "summary.json").read_text())
    assert list(summary["methods"]) == ["single", "joint", *MERGES]
    for method in MERGES:
        entry = summary["rules"][method]
        assert set(entry["difference"]) == {"mean", "ci95"}
        assert (entry["rule"], entry["settings"]) == (None, {})
        assert summary["cost"][method]["step_seconds"] is None
        assert summary["cost"][method]["peak_memory_bytes"] == 0
    assert summary["recovered_method"] is None  # the headline is not about a baseline
    text = (home / "out" / "summary.md").read_text()
    assert "Tried for the merges, of the single adapters that were chosen: study.merge.scale: 0.3, 1.0." in text
    assert "| scale 0.3 | – | – |" in text
    assert "merge-ties was merged out of the single adapters of each seed, without training (scale " in text
    assert "merge-ties · scale 0.3 · seed 7" in shown


def test_a_merged_run_is_a_run(finished, home, cli):
    out = finished[0] / "out" / "runs" / "merge-ties" / "seed-0"
    scores = json.loads(cli.ok("evaluate", out, "--json"))
    metrics = read_record(out).metrics
    assert {task: values["main"] for task, values in scores.items()} == pytest.approx(metrics, abs=1e-6)
    assert "goal" in cli.ok("predict", out, "--task", "topic", "the goal")


def test_finished_ones_are_kept_and_one_that_is_gone_is_the_same_again(finished, home):
    shutil.copytree(finished[0] / "out", home / "out")
    gone = home / "out" / "runs" / "merge-dare" / "seed-0"
    before = (gone / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(gone)
    shown = Cli(home).ok("compare", finished[0] / "study.yaml", "--out", "out", *OF_TASKS)
    assert "17 of 18 runs are finished and kept" in shown
    assert (gone / "adapter_model.safetensors").read_bytes() == before


def test_merges_of_an_earlier_choice_are_named(finished, home):
    shutil.copytree(finished[0] / "out", home / "out")
    for value in ("scale-0.3", "scale-1.0"):
        path = home / "out" / "sweep" / "merge-ties" / value / "seed-7" / "result.json"
        result = json.loads(path.read_text())
        chosen = read_record(home / "out" / "runs" / "merge-ties" / "seed-0").provenance["merge"]["scale"]
        worse = -1.0 if value == f"scale-{chosen}" else 0.9
        path.write_text(json.dumps({**result, "metrics": dict.fromkeys(result["metrics"], worse)}))
    message = Cli(home).complaint("compare", finished[0] / "study.yaml", "--out", "out", *OF_TASKS)
    assert "now chooses other settings for merge-ties than" in message
    assert "runs/merge-ties/seed-0" in message


def test_a_merge_added_to_a_finished_study_trains_nothing(home, cli):
    config = study(home, study={"methods": [], "seeds": [0]}, training={"steps": 2})
    cli.ok("compare", config, "--out", "out", *OF_TASKS)
    before = {p: p.stat().st_mtime_ns for p in (home / "out").rglob("adapter_model.safetensors")}
    own = "[{name: half, rule: merge-ties, set: {study.merge.density: 0.5}}]"
    command = ["compare", config, "--out", "out", *OF_TASKS, "--set", f"study.methods={own}"]
    assert "3 of 4 runs are finished and kept" in cli.ok(*command)
    after = {p: p.stat().st_mtime_ns for p in (home / "out").rglob("adapter_model.safetensors")}
    assert {p: t for p, t in after.items() if p in before} == before
    assert read_record(home / "out" / "runs" / "half" / "seed-0").provenance["merge"]["density"] == 0.5
    message = cli.complaint(*command, "--set", "study.merge.scale=0.7")
    assert "study.merge.scale = nothing there, 0.7 here" in message


ENTRY = {"name": "m", "rule": "merge-linear"}
BAD = [
    ({"methods": MERGES}, {"lora": {"options": {"use_dora": True}}}, "The single adapters cannot be merged"),
    ({"methods": MERGES}, {"lora": {"options": {"init_lora_weights": "pissa"}}}, "changes the backbone"),
    ({"methods": [{**ENTRY, "set": {RATE: 0.1}}]}, {}, "it merges finished adapters, and does not train"),
    ({"methods": [{**ENTRY, "block": "all"}]}, {}, "it merges finished adapters, and does not train"),
    ({"methods": [{**ENTRY, "set": {"study.merge.dense": 0.1}}]}, {}, "study.merge.density"),
    ({"methods": MERGES, "merge": {"density": 0}}, {}, "study.merge.density"),
    ({"methods": MERGES, "merge": {"weights": {"topc": 1}}}, {}, "did you mean `topic`?"),
    ({"methods": [{"name": "m", "rule": "ortho", "set": {"study.merge.scale": 1}}]}, {}, "cannot be set for one"),
    ({"methods": ["merge-tie"]}, {}, "'merge-tie' cannot be used"),
]


@pytest.mark.parametrize(("of_study", "sections", "words"), BAD)
def test_what_cannot_be_is_refused_before_any_training(home, cli, of_study, sections, words):
    config = study(home, study={**of_study, "seeds": [0]}, **sections)
    assert words in cli.complaint("compare", config, "--out", "out")
    assert not list((home / "out").rglob("*"))


@pytest.mark.parametrize(
    ("methods", "values", "words"),
    [
        (MERGES, {"study.merge.scale": [0.1, 1]}, "only settings of merges"),
        (["ortho"], {RATE: [0.1, 1], "study.merge.scale": [0.1, 1]}, "no method of the study takes"),
        (["merge-linear"], {RATE: [0.1, 1], "study.merge.density": [0.1, 1]}, "no method of the study takes"),
        (["merge-ties"], {RATE: [0.1, 1], "study.merge.density": [0.1, 2]}, "study.merge.density"),
        (["merge-ties"], {RATE: [0.1, 1], "study.merge.densty": [0.1, 1]}, "study.merge.density"),
        ([{**ENTRY, "set": {"study.merge.scale": 1}}], {RATE: [0.1, 1], "study.merge.scale": [0.1, 1]}, "sets"),
        (MERGES, {RATE: [0.1, 1], "lora.options.use_dora": [False, True]}, "The single adapters cannot be merged"),
    ],
)
def test_bad_sweeps_are_refused_before_any_training(home, cli, methods, values, words):
    config = study(home, study={"methods": methods, "seeds": [0], "sweep": {"values": values, "rows": 15}})
    assert words in cli.complaint("compare", config, "--out", "out")
    assert not list((home / "out").rglob("adapter_model.safetensors"))
