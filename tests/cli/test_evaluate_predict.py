"""`evaluate` and `predict` on a finished run, and on folders that are none."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tiny import tiny_config, write_backbone

TEXT, OTHER = "the goal was fine", "yes indeed"


def answers(shown):
    return [json.loads(line) for line in shown.splitlines()]


def test_evaluate_repeats_the_runs_metrics(cli, trained):
    scores = json.loads(cli.ok("evaluate", trained, "--json"))
    result = json.loads((trained / "result.json").read_text(encoding="utf-8"))
    assert {task: values["main"] for task, values in scores.items()} == pytest.approx(result["metrics"], abs=1e-6)
    shown = cli.ok("evaluate", trained)
    assert "accuracy" in shown
    assert f"{100 * result['metrics']['score']:.2f}" in shown


def test_predict_a_class(cli, trained):
    shown = cli.ok("predict", trained, "--task", "topic", TEXT, "the bank", "--json")
    first, second = answers(shown)
    assert (first["text"], second["text"]) == (TEXT, "the bank")
    assert first["label"] in first["scores"]
    assert sum(first["scores"].values()) == pytest.approx(1)
    plain = cli.ok("predict", trained, "--task", "topic", TEXT)
    assert plain == f"{first['label']} ({first['scores'][first['label']]:.0%})\t{TEXT}\n"


def test_predict_a_pair_and_a_value(cli, trained):
    (pair,) = answers(cli.ok("predict", trained, "--task", "pair", TEXT, OTHER, "--json"))
    assert pair["text"] == [TEXT, OTHER]
    (value,) = answers(cli.ok("predict", trained, "--task", "score", TEXT, "--json"))
    assert set(value) == {"text", "value"}
    assert cli.ok("predict", trained, "--task", "score", TEXT) == f"{value['value']:.3f}\t{TEXT}\n"


def test_predict_a_file_and_standard_input(cli, trained, home):
    lines = f"{TEXT}\t{OTHER}\n\n{OTHER}\t{TEXT}\n"
    (home / "pairs.txt").write_text(lines, encoding="utf-8")
    from_file = cli.ok("predict", trained, "--task", "pair", "--file", "pairs.txt")
    assert len(from_file.splitlines()) == 2
    assert cli.ok("predict", trained, "--task", "pair", input=lines) == from_file


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--task", "topics", TEXT], ["'topics'", "topic, pair, score"]),
        (["--task", "topic", TEXT, "  "], ["Text 2"]),
        (["--task", "pair", TEXT], ["two texts"]),
        (["--task", "pair", TEXT, ""], ["neither empty"]),
        (["--task", "topic"], ["no text to predict"]),
        (["--task", "topic", TEXT, "--file", "tiny.yaml"], ["two sources"]),
        (["--task", "topic", "--file", "nowhere.txt"], ["nowhere.txt", "o such file"]),
        (["--task", "topic", "--file", "."], ["directory"]),
        (["--task", "pair", "--file", "tiny.yaml"], ["tab"]),
    ],
)
def test_predict_refuses(cli, trained, words, parts):
    message = cli.complaint("predict", trained, *words, input="")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--task", "topic", TEXT]])
class TestBadRun:
    def test_no_folder(self, cli, command):
        assert "no such folder" in cli.complaint(command[0], "nowhere", *command[1:])

    def test_a_folder_of_something_else(self, cli, command, home):
        assert "a folder with" in cli.complaint(command[0], home, *command[1:])

    def test_a_file(self, cli, command):
        assert "a file" in cli.complaint(command[0], "tiny.yaml", *command[1:])

    def test_damaged_metadata(self, cli, command, run):
        for content in (b'{"format": 1', b"[]", b"\xff", b'{"format": 99, "tasks": []}', b'{"format": 1}'):
            (run / "ortholora.json").write_bytes(content)
            assert "ortholora.json" in cli.complaint(command[0], run, *command[1:])

    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "heads.safetensors", "adapter_config.json"])
    def test_a_truncated_file(self, cli, command, run, name):
        (run / name).write_bytes((run / name).read_bytes()[:100])
        assert name in cli.complaint(command[0], run, *command[1:])

    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "heads.safetensors", "adapter_config.json"])
    def test_a_missing_file(self, cli, command, run, name):
        """Also under a relative name, which PEFT would look for on the hub."""
        (run / name).unlink()
        message = cli.complaint(command[0], run.name, *command[1:])
        assert name in message
        assert "no such file" in message

    def test_an_adapter_of_another_backbone(self, cli, command, run, home):
        write_backbone(home / "wide", hidden=48)
        card = json.loads((run / "ortholora.json").read_text(encoding="utf-8"))
        (run / "ortholora.json").write_text(json.dumps({**card, "backbone": str(home / "wide")}), encoding="utf-8")
        message = cli.complaint(command[0], run, *command[1:])
        assert "does not fit the backbone" in message
        assert "size" in message

    def test_an_adapter_with_a_matrix_missing(self, cli, command, run):
        """PEFT would leave the missing matrix at its random start, with a warning."""
        path = run / "adapter_model.safetensors"
        weights = load_file(path)
        lost = next(iter(weights))
        save_file({name: weight for name, weight in weights.items() if name != lost}, path)
        assert lost in cli.complaint(command[0], run, *command[1:])

    def test_a_lost_backbone(self, cli, command, run):
        card = json.loads((run / "ortholora.json").read_text(encoding="utf-8"))
        (run / "ortholora.json").write_text(json.dumps({**card, "backbone": "/nowhere/bert"}), encoding="utf-8")
        assert "'/nowhere/bert'" in cli.complaint(command[0], run, *command[1:])


def test_evaluate_without_configuration_or_data(cli, run, home):
    (run / "config.yaml").rename(run / "other.yaml")
    assert "config.yaml" in cli.complaint("evaluate", run)
    (run / "other.yaml").rename(run / "config.yaml")
    (home / "elsewhere").mkdir()
    assert "-topic.tsv" in cli.complaint("evaluate", run, "--data-dir", home / "elsewhere")
    assert "nothing there" in cli.complaint("evaluate", run, "--data-dir", "nowhere")


def test_evaluate_refuses_data_with_other_labels(cli, run, home):
    other = home / "elsewhere"
    other.mkdir()
    for path in home.glob("*-*.*"):
        shutil.copy(path, other)
    for part in ("train", "dev"):
        path = other / f"{part}-topic.tsv"
        path.write_text(path.read_text(encoding="utf-8").replace("\tmoney", "\tcash"), encoding="utf-8")
    message = cli.complaint("evaluate", run, "--data-dir", other)
    assert "cash" in message
    assert "money" in message


def test_a_study_folder_is_no_run(cli, home, trained):
    (home / "study" / "runs").mkdir(parents=True)
    assert "inside the --out of `ortholora compare`" in cli.complaint("evaluate", home / "study")


def test_a_moved_run_with_a_relative_backbone(cli, home, monkeypatch):
    """A backbone named by a relative folder must be found from wherever the run is used."""
    tiny_config(home, "relative", backbone="backbone", training={"steps": 1})
    cli.ok("train", "relative.yaml", "--out", "out")
    (home / "sub").mkdir()
    monkeypatch.chdir(home / "sub")
    cli.ok("predict", home / "out", "--task", "topic", TEXT)
