"""`bad_rows: drop`: what is left out, that it is listed, and how much is too much. And data that made tracebacks."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_folder import Folder, check
from ortholora.config.file import load_config
from ortholora.data.read import read_tasks, split_config

GOOD = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(40))
#: Beside 40 good rows: a ragged line, an empty text, and a label that is only a space.
RAGGED = "text\tlabel\nfirst\ta\none\ttoo\tmany\n" + GOOD + "\ta\nlast\tb\nx\t \n"


def test_by_default_bad_rows_are_refused_and_the_message_names_the_way_out(folder: Folder) -> None:
    for content, part in [
        ("text\tlabel\na\tx\nb\ty\tz\n", "3 in line 3"),
        ("text\tlabel\na\tx\n\ty\n", "an empty text in row 2"),
    ]:
        folder.both(content)
        check(folder.complaint(), part, "`bad_rows: drop`")
    folder.both('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\nx\n', "jsonl")
    check(folder.complaint("jsonl"), "line 3", "`bad_rows: drop`")
    folder.both("text\tlabel\na\t1\nb\tnan\n")
    check(folder.complaint(kind="regression"), "`nan` in row 2", "`bad_rows: drop`")


def test_dropped_rows_are_those_that_cannot_be_used(folder: Folder) -> None:
    folder.both(RAGGED)
    data = folder.read(bad_rows="drop", max_bad_rows=0.1)
    assert [text for (text,) in data.train.texts] == ["first", *(f"text {i}" for i in range(40)), "last"]
    listed = ((2, "3 in line 3"), (43, "no value of `text`"), (45, "no value of `label`"))
    assert data.dropped == {"train": listed, "dev": listed}
    clean = "\n".join(line for i, line in enumerate(RAGGED.split("\n")) if i not in (2, 43, 45))
    folder.both(clean)
    again = folder.read()
    assert (again.dropped, again.sources) == ({}, data.sources)  # the hash is that of the rows that are left
    assert (again.train, again.dev) == (data.train, data.dev)


def test_rows_keep_the_numbers_that_they_have_in_their_file(folder: Folder) -> None:
    folder.both(RAGGED)
    lines = RAGGED.split("\n")
    for keys in ({}, {"max_train_rows": 9}):
        rows = folder.read(bad_rows="drop", max_bad_rows=0.1, **keys).train
        for part, indices in ((rows, range(len(rows))), (rows.take([5, 2]), range(2))):
            assert [lines[part.number(i)].split("\t")[0] for i in indices] == [part.texts[i][0] for i in indices]
            assert part.place(0).endswith(f"train.tsv, row {part.number(0)} (the first row of data is row 1)")


def test_more_than_the_share_is_refused(folder: Folder) -> None:
    folder.both(RAGGED)
    message = folder.complaint(bad_rows="drop")
    check(message, "at most 5.0% of the rows", "3 of 45, 6.7%", "row 2: 3 in line 3", "`max_bad_rows`")


def test_the_numbers_of_later_messages_count_the_dropped_rows(folder: Folder) -> None:
    folder.write("train.tsv", "text\tlabel\n" + GOOD)
    folder.write("dev.tsv", "text\tlabel\nx\na\ta\n\tb\n" + GOOD + "b\tc\n")
    assert "`c` in row 44 " in folder.complaint(bad_rows="drop", max_bad_rows=0.1)


def test_json_lines_and_numbers(folder: Folder) -> None:
    lines = [json.dumps({"text": f"t{i}", "label": i}) for i in range(40)]
    bad = ["[1]", "[" * 9000, '{"text": "a", "label": ' + "9" * 5000 + "}", "{", '{"text": "\\ud800", "label": 1}']
    bad += [
        '{"text": "a"}',
        '{"text": ["a"], "label": 1}',
        '{"text": "a", "label": "x"}',
        '{"text": "a", "label": 1e999}',
    ]
    folder.both("\n".join([*bad, *lines]), "jsonl")
    data = folder.read("jsonl", kind="regression", bad_rows="drop", max_bad_rows=0.5)
    assert data.train.targets == [float(i) for i in range(40)]
    assert [row for row, _ in data.dropped["train"]] == list(range(1, 10))
    assert dict(data.dropped["dev"])[5] == "half of a character in a value of `text`"


def test_chats(folder: Folder) -> None:
    def line(*contents: Any) -> str:
        roles = ["user", "assistant"] * len(contents)
        return json.dumps({"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]})

    lines = [line("q", "a"), line("q"), line("q", 5), line("q", "\ud800"), line("q", " "), '{"messages": 3}', "{}"]
    folder.both("\n".join(lines), "jsonl")
    data = folder.read("jsonl", kind="chat", bad_rows="drop", max_bad_rows=0.9)
    assert len(data.train) == 1
    assert [row for row, _ in data.dropped["train"]] == [2, 3, 4, 5, 6, 7]
    check(folder.complaint("jsonl", kind="chat"), "`bad_rows: drop`")


def test_a_file_of_several_tasks(folder: Folder) -> None:
    rows = "".join(f"text {i}\t{i % 2}\t{'uv'[i // 20]}\n" for i in range(40))
    folder.both("text\tlabel\ttask\nx\t1\t\n" + rows)
    path = folder.path / "c.yaml"
    task = "{name: t, train: train.tsv, dev: dev.tsv, split_by: task, bad_rows: drop}"
    path.write_text(f"backbone: x\ntasks: [{task}]\n")
    config = split_config(load_config(path), base=folder.path, data_dir=None)
    assert config.task_names == ["t.u", "t.v"]
    for task in read_tasks(config, base=folder.path, data_dir=None):
        assert len(task.train) == 20
        assert task.dropped["train"] == ((1, "no value of `task`"),)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[" * 9000, "nested too deeply"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "4300"),
        ('{"text": "\\udfff", "label": 1}', "half of a character in row 2"),
    ],
)
def test_json_that_python_cannot_hold(folder: Folder, line: str, found: str) -> None:
    folder.both('{"text": "a", "label": 1}\n' + line, "jsonl")
    check(folder.complaint("jsonl"), found)


def test_parquet_that_is_no_text(folder: Folder) -> None:
    table = pa.table({"text": pa.array([b"a", b"\xff\xfe"], pa.binary()), "label": [0, 1]})
    pq.write_table(table.set_column(0, "text", table["text"].cast(pa.string(), safe=False)), folder.path / "p.parquet")
    check(folder.complaint(train="p.parquet", dev="p.parquet"), "UTF-8")


def test_a_text_longer_than_the_csv_reader_likes(folder: Folder) -> None:
    folder.both("text,label\n" + "x" * 200_000 + ",1\ny,0\n", "csv")
    assert len(folder.read("csv").train.texts[0][0]) == 200_000


def test_the_home_of_nobody(folder: Folder) -> None:
    check(folder.complaint(train="~nobody-of-this-name/x.tsv"), "no such file")
