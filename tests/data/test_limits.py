"""Hostile and mistaken data files: one message with a way out, in little memory, from both readers alike."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_folder import Folder, check
from ortholora.data import limits
from ortholora.data.files import json_object, read_file
from ortholora.data.limits import COLUMNS, DATA, ROW
from ortholora.data.stream import stream_rows
from ortholora.errors import UserError
from ortholora.text.messages import message_problem, tools_problem
from ortholora.text.nesting import DEEPEST, is_too_deep


def whole(path: Path) -> object:
    return read_file(path.parent, path.name, text=("text",), label="label")


def rows(path: Path) -> object:
    return list(stream_rows(path, ["text"], ["label"]))


def refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize("read", [whole, rows])
@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.tsv", "text\tlabel\n" + "x" * 3000, "a longer one, line 2"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n' + "x" * 3000 + "\n", "a longer one, line 2"),
        ("a.csv", 'text,label\na,b\n"' + "x\n" * 3000, "(a quote not closed?)"),
        ("a.csv", "text,label\na,b\n" + '"x\n",' * 3000, "(a quote not closed?)"),
    ],
)
def test_a_row_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], name: str, content: str, found: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setenv(ROW, "1000")
    check(refusal(read, tmp_path / name), "rows of at most 1,000 characters", found, ROW)
    monkeypatch.setenv(ROW, "1e6")
    assert "more than is read" not in str(outcome(read, tmp_path / name))


def outcome(read: Callable[[Path], object], path: Path) -> object:
    try:
        return read(path)
    except UserError as error:
        return error


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.parquet"])
def test_too_many_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, names = tmp_path / name, ["text", "label", *(f"c{i}" for i in range(30))]
    if name == "a.parquet":
        pq.write_table(pa.table({column: ["x"] for column in names}), path)
    elif name == "a.jsonl":  # other keys in every row
        path.write_text("".join(json.dumps({"text": "x", "label": "y", key: 1}) + "\n" for key in names[2:]))
    else:
        sign = "," if name == "a.csv" else "\t"
        path.write_text(f"{sign.join(names)}\n{sign.join(names)}\n")
    whole(path)
    monkeypatch.setenv(COLUMNS, "20")
    for read in (whole,) if name == "a.jsonl" else (whole, rows):
        check(refusal(read, path), "at most 20 columns", COLUMNS)


def test_a_hundred_thousand_columns_are_refused_at_once(tmp_path: Path) -> None:
    names = ",".join(f"c{i}" for i in range(100_000))
    (tmp_path / "a.csv").write_text(f"{names}\n{names}\n")
    check(refusal(rows, tmp_path / "a.csv"), "100,000 names of columns")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.parquet"])
def test_rows_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, text = tmp_path / name, "x" * 10_000
    if name == "a.parquet":  # 1 MB in some kilobytes
        pq.write_table(pa.table({"text": [text] * 100, "label": ["a"] * 100}), path, compression="zstd")
        assert path.stat().st_size < 5000
    elif name == "a.jsonl":
        path.write_text(f'{{"text": "{text}", "label": "a"}}\n' * 100)
    else:
        sign = "," if name == "a.csv" else "\t"
        path.write_text(f"text{sign}label\n" + f"{text}{sign}a\n" * 100)
    monkeypatch.setenv(DATA, "0.0005")
    check(refusal(whole, path), "rows that take at most 0.0005 GB of memory", "rows", DATA)
    rows(path)  # one after the other they need none
    monkeypatch.setenv(DATA, "0.1")
    whole(path)


def test_values_that_are_nested_count_by_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"text": [{"role": "user", "content": "x" * 1000}], "label": "a"}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 100)
    monkeypatch.setenv(DATA, "0.0003")
    assert "more than is read" in refusal(whole, tmp_path / "a.jsonl")


def test_columns_that_nobody_wants_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "label": "b", "page": "x" * 10_000}) + "\n")
    monkeypatch.setenv(DATA, "0.000001")
    whole(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="more than is read"):
        read_file(tmp_path, "a.jsonl", text=(), label="", also=None)


@pytest.mark.parametrize("text", ["0", "-1", "much", "nan", "inf"])
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(DATA, text)
    with pytest.raises(UserError, match=f"(?s){DATA}.*a number above 0"):
        limits.most_held()


def test_the_default_is_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA, raising=False)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10**8 < limits.most_held() <= machine / 2


# ---- nesting ---------------------------------------------------------------------------------------------


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_the_depth_does_not_depend_on_python() -> None:
    assert not is_too_deep(json.loads(nested(DEEPEST)))
    assert is_too_deep(json.loads(nested(DEEPEST + 1)))
    assert not is_too_deep([[]] * 1000)
    assert isinstance(json_object(f'{{"a": {nested(DEEPEST - 1)}}}'), dict)
    for levels in (DEEPEST, 900, 100_000):
        assert "nested too deeply" in str(json_object(f'{{"a": {nested(levels)}}}'))
    assert isinstance(json_object(json.dumps({"a": "[" * 500})), dict)  # brackets of a text are no levels


def test_chats_and_tools_in_json(folder: Folder) -> None:
    deep = json.loads(nested(900))
    assert "nested too deeply" in str(message_problem({"role": "user", "content": "a", "more": deep}))
    assert "nested too deeply" in str(tools_problem(f'[{{"name": {nested(900)}}}]'))
    good = json.dumps({"text": "a", "label": "x"}) + "\n" + json.dumps({"text": "b", "label": "y"}) + "\n"
    folder.both(f'{good}{{"text": "a", "label": "x", "more": {nested(900)}}}\n', "jsonl")
    check(folder.complaint("jsonl"), "nested too deeply", "line 3", "`bad_rows: drop`")
    assert len(folder.read("jsonl", bad_rows="drop", max_bad_rows=0.5).train) == 2


# ---- what is no text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [whole, rows])
@pytest.mark.parametrize(
    ("name", "content", "found", "todo"),
    [
        ("a.jsonl", gzip.compress(b"{}"), "compressed with gzip", "gunzip"),
        ("a.csv", b"PK\x03\x04" + bytes(50), "zip archive", "CSV in UTF-8"),
        ("a.tsv", b"PAR1 and more", "a Parquet file", ".parquet"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "UTF-16", "iconv -f utf-16 "),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "a NUL in byte 2", "iconv -f utf-16le"),
        ("a.tsv", bytes(5000), "a NUL in byte 1", "give the right file"),
        ("a.tsv", b"text\tlabel\na\tb\n\xffa\tb\n", "byte 0xff in line 3", "iconv -f latin1"),
        ("a.csv", b"text,label\r" + b"a,b\r" * 9000 + b"\xff,b\r", "byte 0xff in line 9002", "iconv -f latin1"),
        ("a.csv.gz", b"", "`.gz`", "unpack it first"),
        ("a.json", b"[]", "`.json`", "jq -c"),
    ],
)
def test_what_is_no_text(
    tmp_path: Path, read: Callable[[Path], object], name: str, content: bytes, found: str, todo: str
) -> None:
    (tmp_path / name).write_bytes(content)
    check(refusal(read, tmp_path / name), found, todo)


def test_links_are_followed_and_those_to_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "there.tsv").write_text("text\tlabel\na\tb\n")
    for name, target in [("good.tsv", "there.tsv"), ("bad.tsv", "away.tsv"), ("loop.tsv", "loop.tsv")]:
        (tmp_path / name).symlink_to(target)
    (tmp_path / "zero.tsv").symlink_to("/dev/zero")
    whole(tmp_path / "good.tsv")
    check(refusal(whole, tmp_path / "bad.tsv"), "a symbolic link to away.tsv, which cannot be reached")
    check(refusal(rows, tmp_path / "loop.tsv"), "a symbolic link to loop.tsv")
    check(refusal(whole, tmp_path / "zero.tsv"), "a pipe or a device")
