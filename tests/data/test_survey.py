"""Counting rows: what comes again, what contradicts, what two parts share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ortholora.config.schema import Config
from ortholora.data.read import read_each
from ortholora.data.survey import survey
from ortholora.data.task import Split, TaskData
from ortholora.text.completion import Completion
from ortholora.text.texts import Texts

TASKS = [
    {"name": "pair", "train": "a.csv", "dev": "b.csv", "text": ["x", "y"]},
    {"name": "number", "kind": "regression", "train": "a.csv", "dev": "b.csv"},
    {"name": "asked", "kind": "completion", "train": "a.jsonl", "dev": "b.jsonl", "labels": ["yes", "no"]},
]


def task(place: int, train: Split, dev: Split, labels: tuple[str, ...] | None, test: Split | None = None) -> TaskData:
    spec = Config.model_validate({"backbone": "x", "tasks": [TASKS[place]]}).tasks[0]
    return TaskData(spec, labels, train, dev, {}, test)


def pairs(*rows: tuple[str, str, int]) -> Split:
    return Split([Texts(row[:2]) for row in rows], [row[2] for row in rows])


def test_pairs_are_counted() -> None:
    train = pairs(("a", "b", 0), ("a", "b", 0), ("a", "b", 1), ("ab", "", 1), ("b", "a", 1))
    dev = pairs(("b", "a", 0), ("c", "c", 1), ("b", "a", 1))
    test = pairs(("c", "c", 1), ("ab", "", 0))
    found = survey(task(0, train, dev, ("no", "yes"), test))
    own = found.parts["train"]
    assert (own.rows, own.classes, own.repeated, own.contradicting) == (5, {"no": 2, "yes": 3}, 1, 3)
    assert found.parts["dev"].contradicting == 2
    assert found.parts["dev"].repeated == 0  # another class is no repetition
    # Whatever class they have; and ("ab", "") is not ("a", "b").
    assert found.shared == {("train", "dev"): 2, ("train", "test"): 1, ("dev", "test"): 1}


def test_numbers_have_a_range_and_contradict_nobody() -> None:
    part = Split([Texts(["a"]), Texts(["a"])], [1.0, 4.0])
    own = survey(task(1, part, part, None)).parts["train"]
    assert (own.values, own.classes, own.repeated, own.contradicting) == ((1.0, 2.5, 4.0), None, 0, 0)


def test_of_a_prompt_the_answer_is_no_part_of_the_text() -> None:
    train = Split([Completion("a?", "yes"), Completion("b?", "no"), Completion("b?", "no")], [0, 1, 1])
    dev = Split([Completion("a?", "no"), Completion("c?", "yes")], [1, 0])
    found = survey(task(2, train, dev, ("yes", "no")))
    assert found.shared == {("train", "dev"): 1}
    assert found.parts["train"].repeated == 1


def test_every_task_with_bad_data_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "good.tsv").write_text("text\tlabel\na\tx\nb\ty\n")
    (tmp_path / "bad.tsv").write_text("text\tlable\na\tx\nb\ty\n")
    tasks: list[dict[str, Any]] = [
        {"name": name, "train": file, "dev": "good.tsv"}
        for name, file in (("one", "bad.tsv"), ("two", "good.tsv"), ("three", "absent.tsv"))
    ]
    config = Config.model_validate({"backbone": "x", "tasks": tasks})
    good, wrong = read_each(config, base=tmp_path, data_dir=None)
    assert [task.name for task in good] == ["two"]
    assert ["bad.tsv" in wrong[0].what, "absent.tsv" in str(wrong[1])] == [True, True]
