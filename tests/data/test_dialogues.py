"""Rows of language-model tasks: files, columns that name the task, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import ortholora.data.read
from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.data.read import read_tasks, split_config
from ortholora.errors import UserError
from ortholora.text.completion import Completion

GOOD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def config(*tasks: dict[str, Any]) -> Config:
    entries = [{"name": "t", "kind": "completion", "train": "a.jsonl", "dev": "a.jsonl", **task} for task in tasks]
    return Config.model_validate({"backbone": "x", "tasks": entries})


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def read(folder: Path, **task: Any) -> Any:
    return read_tasks(config(task), base=folder, data_dir=None)[0]


def complaint(folder: Path, **task: Any) -> str:
    with pytest.raises(UserError) as error:
        read(folder, **task)
    return str(error.value)


def test_completions_are_kept_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, [{"q": "a ", "a": " b\n"}, {"q": "c", "a": "d"}])
    task = read(tmp_path, prompt="q", completion="a")
    assert list(task.train.texts) == [Completion("a ", " b\n"), Completion("c", "d")]
    assert task.labels is None
    assert task.spec.metric == "inverse_perplexity"
    assert "sha256:" in task.sources["train"]


def test_a_closed_set_of_answers(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": "a", "completion": " no"}, {"prompt": "b", "completion": " yes"}])
    task = read(tmp_path, labels=[" no", " yes"])
    assert list(task.train.targets) == [0, 1]
    assert task.spec.metric == "accuracy"
    message = complaint(tmp_path, labels=["no", "yes"])
    assert "' no' in row 1" in message
    assert "mind spaces" in message


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_chats_from_any_file(tmp_path: Path, ending: str) -> None:
    rows = [{"messages": [{"role": "system", "content": "be kind"}, *GOOD]}, {"messages": GOOD}]
    write(tmp_path, rows)
    if ending == "parquet":
        rows[0]["messages"][0]["name"] = "x"  # the others get a null here
        pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    task = read(tmp_path, kind="chat", train=f"a.{ending}", dev=f"a.{ending}")
    chats = [row.messages for row in task.train.texts]
    assert list(chats[1]) == GOOD
    assert [message["role"] for message in chats[0]] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("chat", "found"),
    [
        ("hello", "no list in row 1"),
        ([], "an empty list"),
        (GOOD[:1], "a single message"),
        ([*GOOD, GOOD[0]], "ends with a message of 'user'"),
        ([{"role": "user"}, GOOD[1]], "without `role` and `content` (`role`)"),
        ([GOOD[0], {"role": "assistant", "content": None}], "content is a NoneType"),
        ([GOOD[0], {"role": "assistant", "content": " "}], "an empty answer"),
    ],
    ids=str,
)
def test_what_is_no_chat(tmp_path: Path, chat: Any, found: str) -> None:
    write(tmp_path, [{"messages": chat}])
    assert found in complaint(tmp_path, kind="chat")


def test_one_file_of_several_tasks(tmp_path: Path) -> None:
    write(tmp_path, [{"channel": c, "prompt": f"{c} {i}", "completion": "x"} for i in range(3) for c in ("sum", "qa")])
    settings = split_config(config({"split_by": "channel", "weight": 2.0}), base=tmp_path, data_dir=None)
    assert settings.task_names == ["t.sum", "t.qa"]
    assert {task.weight for task in settings.tasks} == {2.0}
    tasks = read_tasks(settings, base=tmp_path, data_dir=None)
    assert [row.prompt for row in tasks[1].train.texts] == ["qa 0", "qa 1", "qa 2"]
    assert "[channel=qa]" in tasks[1].sources["train"]
    assert split_config(settings, base=tmp_path, data_dir=None) == settings  # split already


def test_rows_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    """Not among the rows of their task: that is where a user will look."""
    write(tmp_path, [{"task": t, "prompt": "x", "completion": c} for t, c in (("a", "y"), ("b", "y"), ("a", "z"))])
    message = complaint(tmp_path, split_by="task", only="a", labels=["y", "w"])
    assert "'z' in row 3 (1 of 2; the first row of data is row 1)" in message


def test_a_file_of_several_tasks_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [{"task": t, "prompt": t, "completion": "x"} for t in ("a", "b", "c")])
    settings = split_config(config({"split_by": "task"}), base=tmp_path, data_dir=None)
    opened = []
    real = ortholora.data.read.read_file
    monkeypatch.setattr(ortholora.data.read, "read_file", lambda *a, **k: opened.append(a[1]) or real(*a, **k))
    tasks = read_tasks(settings, base=tmp_path, data_dir=None)
    assert [task.train.texts[0].prompt for task in tasks] == ["a", "b", "c"]
    assert len(opened) == 2  # train and dev


def test_rows_without_a_task_and_tasks_without_training_are_told(tmp_path: Path) -> None:
    write(tmp_path, [{"task": "a", "prompt": "x", "completion": "x"}, {"task": None, "prompt": "x", "completion": "x"}])
    with pytest.raises(UserError, match="rows without a task"):
        split_config(config({"split_by": "task"}), base=tmp_path, data_dir=None)
    write(tmp_path, [{"task": "a", "prompt": "x", "completion": "x"}])
    (tmp_path / "b.jsonl").write_text(json.dumps({"task": "b", "prompt": "x", "completion": "x"}), encoding="utf-8")
    with pytest.raises(UserError, match="no training row has"):
        split_config(config({"split_by": "task", "dev": "b.jsonl"}), base=tmp_path, data_dir=None)


def test_encoder_tasks_can_be_split_too(tmp_path: Path) -> None:
    write(tmp_path, [{"task": t, "text": "x y", "label": str(i % 2)} for i in range(4) for t in ("a", "b")])
    settings = config({"kind": "classification", "split_by": "task"})
    tasks = read_tasks(split_config(settings, base=tmp_path, data_dir=None), base=tmp_path, data_dir=None)
    assert [(task.name, len(task.train)) for task in tasks] == [("t.a", 4), ("t.b", 4)]


def test_one_of_several_tasks(tmp_path: Path) -> None:
    write(tmp_path, [{"task": t, "prompt": t, "completion": "x"} for t in ("a", "b")])
    assert list(read(tmp_path, split_by="task", only="b").train.texts) == [Completion("b", "x")]
    assert "the values `a`, `b`" in complaint(tmp_path, split_by="task", only="c")
    assert "no column `tsk`" in complaint(tmp_path, split_by="tsk", only="a")


def test_values_that_are_no_names(tmp_path: Path) -> None:
    write(tmp_path, [{"task": "a b", "prompt": "x", "completion": "x"}])
    with pytest.raises(UserError, match="no name for a task"):
        split_config(config({"split_by": "task"}), base=tmp_path, data_dir=None)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([{}, {"name": "u", "kind": "classification"}], "all for an encoder"),
        ([{"metric": "accuracy"}], "without `labels`"),
        ([{"text": "x"}], "keys of a completion task"),
        ([{"turns": "last"}], "keys of a completion task"),
        ([{"kind": "classification", "prompt": "x"}], "keys of a classification task"),
        ([{"only": "x"}], "`split_by`"),
        ([{"hub": {"path": "p", "text": ["a", "b"]}}], "one text column for a completion task"),
        ([{"kind": "chat", "hub": {"path": "p", "label": "a"}}], "no label column"),
        ([{"metric": "pearson"}], "use one of exact_match, inverse_perplexity, rouge_l"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(tmp_path: Path, tasks: list[dict[str, Any]], words: str) -> None:
    entries = [{"name": "t", "kind": "completion", "train": "a.jsonl", "dev": "a.jsonl", **task} for task in tasks]
    (tmp_path / "run.yaml").write_text(json.dumps({"backbone": "x", "tasks": entries}), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_config(tmp_path / "run.yaml")


def test_settings_of_heads_have_no_place_with_a_language_model() -> None:
    entry = {"name": "t", "kind": "completion", "train": "a.jsonl", "dev": "a.jsonl"}
    with pytest.raises(ValueError, match="a language model has none"):
        Config.model_validate({"backbone": "x", "tasks": [entry], "pooling": "last"})


CALL = [GOOD[0], {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]


def test_tools_of_a_row(tmp_path: Path) -> None:
    """From the column `tools`, or the one that is named; as a list, or as a text in JSON."""
    schema = [{"type": "function", "function": {"name": "f"}}]
    write(tmp_path, [{"messages": CALL, "tools": schema, "more": None}, {"messages": GOOD, "more": json.dumps(schema)}])
    task = read(tmp_path, kind="chat")
    assert [list(row.tools) for row in task.train.texts] == [schema, []]
    assert task.train.texts[0].messages[1]["tool_calls"][0]["function"]["arguments"] == {}
    named = read(tmp_path, kind="chat", tools="more")
    assert [list(row.tools) for row in named.train.texts] == [[], schema]
    assert named.sources != task.sources
    assert "no column `functions`" in complaint(tmp_path, kind="chat", tools="functions")


def test_an_answer_that_only_calls_has_no_text_to_compare(tmp_path: Path) -> None:
    write(tmp_path, [{"messages": CALL}])
    assert "`tool_calls` alone" in complaint(tmp_path, kind="chat", metric="exact_match")
    assert "`tool_calls` alone" in complaint(tmp_path, kind="chat", labels=["a", "b"])


def test_tools_that_are_none(tmp_path: Path) -> None:
    rows = [{"messages": GOOD, "tools": "{"}] + [{"messages": GOOD}] * 40
    write(tmp_path, rows)
    assert "tools that are no JSON in row 1" in complaint(tmp_path, kind="chat")
    assert len(read(tmp_path, kind="chat", bad_rows="drop").train) == 40
