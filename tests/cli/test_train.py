"""`train`: what is left on disk, what is kept, and the options."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

import ortholora
from ortholora.config.file import load_config

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "heads.safetensors",
    "ortholora.json",
    "result.json",
    "predictions.npz",
    "config.yaml",
}


def result_of(run):
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def mtimes(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_a_whole_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= FILES
    assert not [name for name in names if name.startswith(".")]
    result = result_of(trained)
    assert (result["method"], result["tasks"]) == ("ortho", ["topic", "pair", "score"])
    with np.load(trained / "predictions.npz") as arrays:
        assert arrays["score/prediction"].shape == (48,)
    config = load_config(trained / "config.yaml")
    assert (config.rule, config.seed, config.training.steps) == ("ortho", 0, 6)


def test_a_result_says_how_steps_were_computed(trained):
    result = result_of(trained)
    assert "layers fused, 0 by the general path" in result["provenance"]["capture"][0]
    assert result["provenance"]["micro_batches"]["layout"] == "by-length"  # what `auto` stands for here
    assert result["micro_batches"] >= 1
    assert 0 <= result["padding"] < 1


def test_the_adapter_is_plain_peft(trained, home):
    """Law 9: the bare backbone with the adapter gives the outputs of the run's encoder."""
    predictor = ortholora.load(trained, device="cpu")
    batch = AutoTokenizer.from_pretrained(home / "backbone")(["the goal was fine"], return_tensors="pt")
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(home / "backbone"), str(trained)).eval()
    with torch.no_grad():
        ours = predictor.model.encoder(**batch).last_hidden_state
        torch.testing.assert_close(plain(**batch).last_hidden_state, ours, rtol=0, atol=1e-6)


def test_started_again_it_keeps_the_run(cli, run, home):
    # `run` is a copy; its fingerprint does not depend on where it lies, only the backbone's path counts.
    before = mtimes(run)
    config = home / "tiny.yaml"
    shown = cli.ok("train", config, "--out", run)
    assert "1 of 1 runs are finished and kept" in shown
    assert mtimes(run) == before


def test_a_changed_setting_is_refused(cli, run):
    before = mtimes(run)
    message = cli.complaint("train", "tiny.yaml", "--out", run, "--set", "training.learning_rate=0.1")
    assert "training.learning_rate = 0.01 there, 0.1 here" in message
    assert "--out" in message
    assert mtimes(run) == before


def test_changed_data_is_refused(cli, run, home):
    data = (home / "train-topic.tsv").read_text(encoding="utf-8")
    (home / "train-topic.tsv").write_text(data.replace("moon", "star"), encoding="utf-8")
    assert "other rows in the data files" in cli.complaint("train", "tiny.yaml", "--out", run)
    # A task less is said in a word, not in thirty keys.
    assert "the tasks topic, pair, score there, pair, score here" in cli.complaint(
        "train", "tiny.yaml", "--out", run, "--tasks", "pair,score"
    )


def test_options(cli, home):
    words = ["--seeds", "0,1", "--tasks", "topic,score", "--set", "lora.r=2", "--max-steps", "2"]
    shown = cli.ok("train", "tiny.yaml", "--out", "out", *words)
    assert f"predict {os.path.join('out', 'seed-0')} --task topic" in shown
    for seed in (0, 1):
        result = result_of(home / "out" / f"seed-{seed}")
        assert (result["seed"], result["tasks"]) == (seed, ["topic", "score"])
        config = result["provenance"]["config"]
        assert (config["lora"]["r"], config["training"]["steps"]) == (2, 2)
    # One more seed: the finished ones are kept.
    assert "2 of 3 runs are finished" in cli.ok("train", "tiny.yaml", "--out", "out", *words[:1], "0,1,2", *words[2:])


def test_the_default_folder_and_the_rule_sum(cli, home):
    shown = cli.ok("train", "tiny.yaml", "--max-steps", "1", "--set", "rule=sum", "--seeds", "7")
    assert "Saved in runs/tiny" in shown
    assert result_of(home / "runs" / "tiny")["seed"] == 7


def test_long_paths_are_not_wrapped(cli, home):
    out = home / ("long-" * 20 + "name")
    assert f"Saved in {out}" in cli.ok("train", "tiny.yaml", "--max-steps", "1", "--out", out)


def test_data_dir(cli, home):
    (home / "data").mkdir()
    for path in home.glob("*-*.*"):
        path.rename(home / "data" / path.name)
    cli.ok("train", "tiny.yaml", "--max-steps", "1", "--out", "out", "--data-dir", "data")
    # The run remembers where its data is.
    scores = json.loads(cli.ok("evaluate", "out", "--json"))
    assert scores["topic"]["main"] == pytest.approx(result_of(home / "out")["metrics"]["topic"])


def test_a_rule_from_the_folder_the_user_starts_in(cli, home):
    cli.ok("train", "tiny.yaml", "--max-steps", "1", "--out", "out", "--set", "rule=my_rules:thirds")
    assert result_of(home / "out")["rule"] == "my_rules:thirds"


@pytest.mark.parametrize("asked", ["by accelerate launch", "in the configuration"])
def test_a_sharded_base_where_there_are_no_shards_is_refused(cli, home, asked, monkeypatch):
    """Accelerate would leave it out on a CPU, and say nothing."""
    words = ["--set", "training.arguments={fsdp: true}"] if asked == "in the configuration" else []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(not words).lower())
    told = cli.complaint("train", "tiny.yaml", "--max-steps", "1", "--out", "out", *words)
    assert ("FSDP in one process" if words else "which Accelerate leaves out on cpu") in told
    assert not (home / "out").exists()
