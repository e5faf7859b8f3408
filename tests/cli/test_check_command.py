"""`check`: figures, warnings, errors, and what a shell is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny import tiny_config


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_good_configuration(cli, home):
    before = files_in(home)
    shown = cli.ok("check", "tiny.yaml", "--strict")
    assert "Plan: 6 steps of 12 rows" in shown
    assert "Capture: 24 LoRA matrices in one pass: 12 layers fused" in shown
    assert "Memory: about" in shown
    assert "Time: about" in shown
    assert "No errors, no warnings." in shown
    assert files_in(home) == before


@pytest.fixture
def leaking(home: Path) -> Path:
    """A dev row that is in train, too; and a class of one row."""
    rows = (home / "train-topic.tsv").read_text(encoding="utf-8").splitlines()
    with (home / "dev-topic.tsv").open("a", encoding="utf-8") as file:
        file.write(rows[1] + "\n")
    with (home / "train-topic.tsv").open("a", encoding="utf-8") as file:
        file.write("moon bank goal\tother\n")
    return home


def test_warnings_are_listed_and_strict_counts_them(cli, leaking):
    words = ("check", "tiny.yaml", "--no-measure", "--tasks", "topic,pair")
    shown = cli.ok(*words)
    assert "Warning: topic: the texts of 1 of 49 dev rows are in train, too." in shown
    assert "Warning: topic, train: few rows of class `other` (1)." in shown
    assert "Warning: topic, dev: no rows of class `other`." in shown
    assert "No errors, 3 warnings." in shown
    assert "Memory: at least" in shown
    assert "not tried out" in shown
    strict = cli(*words, "--strict", "--json")
    assert strict.exit_code == 3
    found = json.loads(strict.stdout)
    assert (found["ok"], found["errors"], len(found["warnings"])) == (False, [], 3)
    assert found["tasks"]["topic"]["shared"] == {"dev in train": 1}
    assert found["plan"]["quota"] == {"topic": 4, "pair": 4}


def test_one_class_in_two_spellings_is_a_warning(cli, home):
    path = home / "train-topic.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("\tsport\n", "\tSport \n", 20), encoding="utf-8")
    shown = cli.ok("check", "tiny.yaml", "--no-measure", "--tasks", "topic,pair")
    assert "topic, train: `Sport`, `sport` count as different classes; do they mean the same?" in shown


def test_every_error_is_told(cli, home):
    for name in ("train-topic.tsv", "dev-pair.csv"):
        (home / name).write_text("nothing\nof use\n", encoding="utf-8")
    words = ("check", "tiny.yaml", "--set", "rule=orto")
    result = cli(*words)
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 3
    for part in ("train-topic.tsv", "dev-pair.csv", "did you mean `ortho`?"):
        assert part in result.stderr
    assert "score" in result.stdout  # the task that could be read
    found = json.loads(cli(*words, "--json").stdout)
    assert [set(error) for error in found["errors"]] == [{"what", "expected", "found", "to_do"}] * 3
    assert found["ok"] is False


def test_a_wrong_configuration_is_one_message_and_json_too(cli, home):
    words = ("check", "tiny.yaml", "--set", "lora.rank=3")
    message = cli.complaint(*words)
    assert "lora.rank" in message
    found = json.loads(cli(*words, "--json").stdout)
    assert "lora.rank" in found["errors"][0]["what"] + found["errors"][0]["found"]


def test_rows_that_are_cut(cli, home):
    tiny_config(home, max_length=7)
    shown = cli.ok("check", "tiny.yaml", "--no-measure")
    assert "longer than 7 tokens (`max_length`) and are cut." in shown


def test_what_only_compare_would_refuse_is_a_warning(cli, home):
    shown = cli.ok("check", "tiny.yaml", "--no-measure", "--set", "study.methods=[nonsense]")
    assert "Warning: `compare` would refuse this: The rule 'nonsense' cannot be used" in shown


def test_a_folder_of_another_run_is_an_error_and_a_finished_one_is_said(cli, run):
    assert "would keep it" in cli.ok("check", "tiny.yaml", "--out", run, "--no-measure")
    message = cli.complaint("check", "tiny.yaml", "--out", run, "--no-measure", "--set", "lora.r=2")
    assert "lora.r = 4 there, 2 here" in message
