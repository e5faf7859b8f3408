"""Language-model tasks from the command line: train, evaluate, predict, compare, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli

import ortholora
from ortholora.errors import UserError
from ortholora.models.backbone import load_tokenizer
from tiny_language import language_config


@pytest.fixture(scope="module")
def language_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, data and a run of 60 steps; not to be changed."""
    home = tmp_path_factory.mktemp("language")
    config = language_config(home, training={"steps": 60, "save_every": 0})
    Cli(home).ok("train", config, "--out", home / "run")
    return home


@pytest.fixture
def run(language_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(language_home / "run", tmp_path / "run"))


def test_evaluate_repeats_what_training_found(language_home: Path, cli: Cli) -> None:
    scores = json.loads(cli.ok("evaluate", language_home / "run", "--json"))
    result = json.loads((language_home / "run" / "result.json").read_text())
    for task, value in result["metrics"].items():
        assert scores[task]["main"] == pytest.approx(value, abs=1e-6)
        assert scores[task]["loss"] == pytest.approx(result["details"][task]["loss"], abs=1e-6)
    assert {"accuracy", "macro_f1", "loss", "inverse_perplexity"} <= set(scores["colour"])
    assert {"exact_match", "rouge_l"} <= set(scores["sound"])
    assert scores["colour"]["main"] > 0.5  # four answers: chance is a quarter


def test_predict_chooses_from_a_closed_set(language_home: Path, cli: Cli) -> None:
    line = json.loads(cli.ok("predict", language_home / "run", "--task", "colour", "sky in colour :", "--json"))
    assert line["label"] in line["scores"]
    assert sum(line["scores"].values()) == pytest.approx(1.0)
    assert set(line["scores"]) == {"black", "blue", "green", "white"}


def test_predict_writes_open_answers(language_home: Path, cli: Cli) -> None:
    assert cli.ok("predict", language_home / "run", "--task", "sound", "a cat sound :").split("\t")[0] == "meow"
    line = json.loads(cli.ok("predict", language_home / "run", "--task", "chat", "repeat 1", "--json"))
    assert line["text"] == "repeat 1"
    assert isinstance(line["answer"], str)


def test_questions_in_json(language_home: Path, cli: Cli, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "repeat 1"}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, ["repeat\n1", messages])), encoding="utf-8")
    shown = cli.ok("predict", language_home / "run", "--task", "chat", "--file", tmp_path / "asked.jsonl", "--json")
    assert [json.loads(line)["text"] for line in shown.splitlines()] == ["repeat\n1", messages]
    ask = ("predict", language_home / "run", "--task", "chat", "--json")
    shown = cli.ok(*ask, json.dumps(messages), '"quoted"', "[1, 2]")
    assert [json.loads(line)["text"] for line in shown.splitlines()] == [messages, '"quoted"', "[1, 2]"]


def test_messages_from_python(language_home: Path) -> None:
    predictor = ortholora.load(language_home / "run", "cpu")
    messages = [{"role": "user", "content": "repeat 1"}]
    answers = [predictor.predict("chat", texts)[0].text for texts in ("repeat 1", messages, [messages])]
    assert len(set(answers)) == 1
    with pytest.raises(UserError, match="the last not from the assistant"):
        predictor.predict("chat", [[*messages, {"role": "assistant", "content": "1"}]])
    with pytest.raises(UserError, match="cannot be answered"):
        predictor.predict("count", [messages])
    with pytest.raises(UserError, match="cannot be answered"):
        predictor.predict("chat", [("a", "b")])


@pytest.fixture
def no_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat template that knows no system message, as many do not."""

    def load(*words: Any) -> Any:
        tokenizer = load_tokenizer(*words)
        refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        tokenizer.chat_template = refuse + tokenizer.chat_template
        return tokenizer

    for place in ("ortholora.models.predictor", "ortholora.runs.workspace"):
        monkeypatch.setattr(f"{place}.load_tokenizer", load)


@pytest.mark.usefixtures("no_systems")
def test_a_row_that_the_chat_template_refuses_is_named(language_home: Path, cli: Cli, home: Path) -> None:
    good = [{"role": "user", "content": "repeat 1"}, {"role": "assistant", "content": "1"}]
    rows = [good, [{"role": "system", "content": "say"}, *good], good]

    def write(name: str, chats: list[Any]) -> None:
        (home / name).write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")

    write("asked.jsonl", [chat[:-1] for chat in rows])
    words = ("predict", language_home / "run", "--task", "chat", "--out", "answers.jsonl", "--data")
    assert "3 rows; 1 of them have a `problem`" in cli.ok(*words, "asked.jsonl")
    lines = [json.loads(line) for line in (home / "answers.jsonl").read_text().splitlines()]
    assert ["answer" in line for line in lines] == [True, False, True]
    assert "no system role" in lines[1]["problem"]
    (home / "answers.jsonl").unlink()
    write("asked.jsonl", [rows[1][:-1]] * 2)
    assert "row 1: no system role" in cli.complaint(*words, "asked.jsonl")
    assert not list(home.glob("answers.jsonl*"))
    ask = ("predict", language_home / "run", "--task", "chat")
    assert "Text 2: The chat template refuses" in cli.complaint(*ask, "repeat 1", json.dumps(rows[1][:-1]))

    write("labelled.jsonl", [*rows, good])
    where = "labelled.jsonl, row 2 (the first row of data is row 1): The chat template refuses these messages"
    assert where in cli.complaint("evaluate", language_home / "run", "--task", "chat", "--data", "labelled.jsonl")
    chat = {"name": "chat", "kind": "chat", "train": str(home / "labelled.jsonl"), "dev": "dev-chat.jsonl"}
    config = language_config(language_home, "refused", tasks=[chat])
    assert where in cli.complaint("train", config, "--out", "other")


def test_the_run_is_a_plain_adapter_without_heads(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "ortholora.json"} <= names
    assert "heads.safetensors" not in names
    assert json.loads((run / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_compare_a_file_that_holds_several_tasks(language_home: Path, cli: Cli, tmp_path: Path) -> None:
    qa = {"name": "qa", "kind": "completion", "train": "train-qa.jsonl", "dev": "dev-qa.jsonl", "split_by": "task"}
    config = language_config(language_home, "split", tasks=[qa], training={"steps": 2, "save_every": 0})
    shown = cli.ok("compare", config, "--out", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["tasks"]) == {"qa.colour", "qa.sound"}
    assert summary["tasks"]["qa.sound"]["metric"] == "inverse_perplexity"
    assert "qa.sound" in shown
    only = cli.complaint("train", config, "--tasks", "qa.smell", "--out", tmp_path / "other")
    assert "qa.colour" in only
    assert "1/1" in cli.ok("train", config, "--tasks", "qa", "--out", tmp_path / "all")
    assert set(json.loads((tmp_path / "all" / "result.json").read_text())["metrics"]) == {"qa.colour", "qa.sound"}
    alone = cli.complaint("train", config, "--set", "tasks.qa.sound.weight=2")
    assert "`only: sound`" in alone


def test_rows_that_are_cut_are_told(language_home: Path, cli: Cli, tmp_path: Path) -> None:
    config = language_config(language_home, "short", max_length=6, training={"steps": 1, "save_every": 0})
    shown = cli.ok("train", config, "--out", tmp_path / "out")
    assert "colour: all 88 rows are longer than 6 tokens (`max_length`) and are cut." in shown
    assert shown.index("longer than 6") < shown.index("micro-batches a step")  # before it costs anything
    shown = cli.ok("compare", config, "--tasks", "chat,count", "--out", tmp_path / "study")
    assert "longer than `max_length`, and so were cut:" in shown
    assert " of chat" in (tmp_path / "study" / "summary.md").read_text()


def test_exact_match_of_answers_that_rouge_cannot_read(language_home: Path, cli: Cli, tmp_path: Path) -> None:
    """The other score is an extra: it must not stop a finished training."""
    row = json.dumps({"prompt": "sky colour :", "completion": "→"}) + "\n"
    for part in ("train", "dev"):
        (language_home / f"{part}-arrows.jsonl").write_text(row * 4, encoding="utf-8")
    arrows = {"name": "a", "kind": "completion", "train": "train-arrows.jsonl", "dev": "dev-arrows.jsonl"}
    steps = {"steps": 1, "save_every": 0}
    config = language_config(language_home, "arrows", tasks=[{**arrows, "metric": "exact_match"}], training=steps)
    shown = cli.ok("train", config, "--out", tmp_path / "out")
    assert "a plain PEFT adapter." in shown  # and no heads beside it
    pytest.importorskip("rouge_score")
    config = language_config(language_home, "arrows", tasks=[{**arrows, "metric": "rouge_l"}], training=steps)
    assert "cannot read these answers" in cli.complaint("train", config, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_encoder_is_refused(language_home: Path, cli: Cli, home: Path) -> None:
    config = language_config(language_home, "bert", backbone=str(home / "backbone"))
    assert "no language model" in cli.complaint("train", config)


def test_rouge_needs_its_package(language_home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "rouge_score" else real(name, *a))
    settings = {"name": "s", "kind": "completion", "train": "train-count.jsonl", "dev": "dev-count.jsonl"}
    config = language_config(language_home, "rouge", tasks=[{**settings, "metric": "rouge_l"}])
    assert "ortholora[lm]" in cli.complaint("train", config)
