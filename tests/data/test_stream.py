"""Rows of a file one after the other: the same as all at once, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ortholora.data.files import read_file
from ortholora.data.stream import stream_rows
from ortholora.errors import UserError

TEXTS = ["plain", "a, b", 'say "x"', "two\nlines", "é\u2028ü", "carriage\rreturn", "  spaces  "]


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"text": text, "label": str(n), "more": "x"} for n, text in enumerate(texts)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8-sig")
    else:
        sign = "," if path.suffix == ".csv" else "\t"
        cells = [[f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in row.values()] for row in rows]
        lines = [sign.join(["text", "label", "more"]), *(sign.join(row) for row in cells)]
        path.write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8-sig"))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("quotes", [True, False])
def test_the_rows_are_those_of_the_whole_file(tmp_path: Path, name: str, quotes: bool) -> None:
    texts = TEXTS if quotes or name != "a.tsv" else ["plain", 'say "x"', "\u2028"]
    path = write(tmp_path / name, texts)
    whole = read_file(tmp_path, name, text=("text",), label="label", tsv_quotes=quotes)
    rows = list(stream_rows(path, ["text"], ["label", "absent"], tsv_quotes=quotes))
    assert [row.number for row in rows] == list(range(1, len(texts) + 1))
    assert [row.values["text"] for row in rows] == list(whole.columns["text"])
    assert [row.values["label"] for row in rows] == list(whole.columns["label"])
    assert all(row.problem is None and row.values.keys() == {"text", "label"} for row in rows)
    if name != "a.tsv":  # so that the comparison is of something
        assert [row.values["text"] for row in rows] == texts


def test_semicolons_separate_as_in_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text;label\n"a; b, c";1\nd, e;0\n')
    whole = read_file(tmp_path, "a.csv", text=("text",), label="label")
    texts = [row.values["text"] for row in stream_rows(tmp_path / "a.csv", ["text"])]
    assert texts == list(whole.columns["text"]) == ["a; b, c", "d, e"]


def test_a_bad_row_is_a_matter_of_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\ngood,1\nragged\nlast,2\n", encoding="utf-8")
    rows = list(stream_rows(tmp_path / "a.csv", ["text"]))
    assert [row.values.get("text") for row in rows] == ["good", None, "last"]
    assert rows[1].problem == "1 in line 3; expected 2 fields in every line, as in the first"
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n[1]\n{"te\n{}\n', encoding="utf-8")
    rows = list(stream_rows(tmp_path / "a.jsonl", ["text"]))
    assert [row.number for row in rows if row.problem is None] == [1, 4]
    assert rows[3].values == {}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", b"text\n\xff\n", "byte 0xff"),
        ("a.jsonl", b'{"text": "\xff"}\n', "byte 0xff"),
        ("a.csv", b'text\n"open\n', "unexpected end of data"),
        ("a.csv", b"words\nx\n", "`words`"),
        ("a.csv", b"text,text\nx,y\n", "more than once"),
        ("a.csv", b"", "nothing"),
        ("a.parquet", b"PAR1 nothing", "Arrow"),
        ("a.txt", b"text\n", "`.txt`"),
    ],
)
def test_a_damaged_file(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=found):
        list(stream_rows(tmp_path / name, ["text"]))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ["x" * 20_000] * 500)  # 10 MB, for the formats that do not compress

    def read() -> int:
        return sum(len(str(row.values["text"])) for row in stream_rows(path, ["text"]))

    read()  # what is imported is no part of it
    tracemalloc.start()
    assert read() >= 10_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
