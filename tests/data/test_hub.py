"""Reading tasks from the hub, and which source wins: no network, a hub in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_folder import TASK, check
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.read import read_task
from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.text.chat import Chat
from ortholora.text.completion import Completion


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set in memory; returns the list of requests."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"q": datasets.Value("string"), "y": datasets.ClassLabel(names=["no", "maybe", "yes", "idle"])}
    )
    splits = {
        "train": datasets.Dataset.from_dict({"q": ["a", "b", "c"], "y": [2, 0, 1]}, features=features),
        "validation": datasets.Dataset.from_dict({"q": ["d"], "y": [1]}, features=features),
        "test": datasets.Dataset.from_dict({"q": ["e"], "y": [-1]}, features=features),
    }
    requests = []

    def load_dataset(path, name=None, *, split, revision=None):
        requests.append((path, name, split, revision))
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return requests


def hub_task(**keys: Any) -> TaskConfig:
    source = {"path": "org/set", "name": "sub", "revision": "abc", "text": "q", "label": "y", **keys.pop("hub", {})}
    return TASK.validate_python({"name": "t", "hub": source, **keys})


def read_hub_task(**keys: Any) -> TaskData:
    return read_task(hub_task(**keys), base=Path(), data_dir=None, seed=0)


def test_hub_rows_for_a_language_model(monkeypatch):
    datasets = pytest.importorskip("datasets")
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = {"channel": ["a", "b", "a"], "messages": [chat] * 3, "question": ["q"] * 3, "answer": [" r"] * 3}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_dict(rows))
    read = {"hub": {"path": "org/set", "text": "messages"}, "kind": "chat", "split_by": "channel", "only": "a"}
    task = read_task(TASK.validate_python({"name": "t", **read}), base=Path(), data_dir=None, seed=0)
    assert len(task.train) == 2
    assert task.train.texts[0] == Chat(tuple(chat))
    read = {"hub": {"path": "org/set", "text": "question", "label": "answer"}, "kind": "completion"}
    task = read_task(TASK.validate_python({"name": "t", **read}), base=Path(), data_dir=None, seed=0)
    assert task.train.texts[0] == Completion("q", " r")


def test_hub_keeps_the_order_of_its_classes_that_occur(hub):
    data = read_hub_task()
    assert data.labels == ("no", "maybe", "yes")
    assert (data.train.texts, data.train.targets, data.dev.targets) == ([("a",), ("b",), ("c",)], [2, 0, 1], [1])
    assert hub == [("org/set", "sub", "train", "abc"), ("org/set", "sub", "validation", "abc")]
    assert data.sources["train"].startswith("hub:org/set/sub@abc#train sha256:")


def test_hub_labels_by_name_or_by_number(hub):
    assert read_hub_task(labels=["yes", "no", "maybe"]).train.targets == [0, 1, 2]
    by_number = read_hub_task(labels=["0", "1", "2"])
    assert (by_number.labels, by_number.train.targets) == (("0", "1", "2"), [2, 0, 1])


def test_hidden_hub_labels_are_missing_labels(hub):
    with pytest.raises(UserError, match="rows without a label"):
        read_hub_task(hub={"dev_split": "test"})


def test_hub_failures_name_the_offline_way(hub, monkeypatch):
    with pytest.raises(UserError) as caught:
        read_hub_task(hub={"dev_split": "valid"})
    check(str(caught.value), "org/set (sub)", 'ValueError: Unknown split "valid"', "offline", "--data-dir")

    def offline(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(UserError) as caught:
        read_hub_task(train="x/train.tsv", dev="x/dev.tsv")
    check(str(caught.value), "ConnectionError: no route", "--data-dir FOLDER with x/train.tsv and x/dev.tsv")


def test_missing_hub_column(hub):
    with pytest.raises(UserError) as caught:
        read_hub_task(hub={"text": "question"})
    check(str(caught.value), "org/set/sub (hub, split train): no column `question`", "`q`, `y`")


# The choice of the source


def test_local_files_win_over_the_hub_only_with_a_data_dir(folder, hub):
    task = hub_task(train="train.tsv", dev="dev.tsv")
    assert read_task(task, base=folder.path, data_dir=None, seed=0).labels == ("no", "maybe", "yes")
    assert read_task(task, base=Path("/nowhere"), data_dir=folder.path, seed=0).labels == ("a", "b")
    assert read_task(hub_task(), base=Path(), data_dir=folder.path, seed=0).labels == ("no", "maybe", "yes")
