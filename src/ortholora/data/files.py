"""Read a split from a local file: TSV, CSV, JSONL or Parquet.

The first three are read with the standard library instead of pandas: no text ever turns into a missing
value, no integer into a float, and a bad line is known by its number.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ortholora.data.table import DROP, Table
from ortholora.errors import UserError, did_you_mean, listing

#: A line's number, from 1 on, and its fields.
Record = tuple[int, list[str]]
#: The columns that a reader is asked for, as far as they are there; None: all.
Wanted = Sequence[str] | None


class _Columns(NamedTuple):
    """What a reader finds.

    Attributes:
        found: Column names that are there.
        columns: The wanted columns, of the rows that could be read.
        rows: Index of each of these rows among all.
        bad: Every other row: its index, what was expected of it, and what was found.
    """

    found: tuple[str, ...]
    columns: dict[str, list[object]]
    rows: list[int] | None = None
    bad: Sequence[tuple[int, str, str]] = ()


def read_file(
    root: Path,
    name: str,
    *,
    text: tuple[str, ...],
    label: str,
    also: tuple[str, ...] | None = (),
    tsv_quotes: bool = False,
    drop: bool = False,
) -> Table:
    """Read the wanted columns of a file.

    Args:
        root: Folder that `name` is relative to.
        name: The file as configured; its ending decides the format.
        text: The text columns.
        label: The label column.
        also: More columns to read, as far as they are there; None: all.
        tsv_quotes: Whether double quotes in a .tsv file quote, as in CSV, or are plain characters.
        drop: Whether lines that cannot be read are left out and listed, or refused.

    Returns:
        The raw columns.

    Raises:
        UserError: The file is missing, of an unknown format, or damaged.
    """
    path = root / _at_home(name)
    ending = check_path(path)
    reader = _read_quoted_tsv if tsv_quotes and ending == ".tsv" else READERS[ending]
    read = reader(path, None if also is None else list(dict.fromkeys([*text, label, *also])))
    if read.bad and not drop:
        _, expected, where = read.bad[0]
        raise damaged(path, expected, where, line=True)
    positions = read.rows if read.bad else None
    dropped = tuple((index + 1, where) for index, _, where in read.bad)
    return Table(str(path), name, read.found, read.columns, text, label, positions=positions, dropped=dropped)


def _read_tsv(path: Path, wanted: Wanted) -> _Columns:
    return _from_records(path, tsv_records(_decode(path).split("\n")), wanted)


def _read_quoted_tsv(path: Path, wanted: Wanted) -> _Columns:
    return _from_records(path, quoted_records(path, io.StringIO(_decode(path), newline=""), "\t"), wanted)


def _read_csv(path: Path, wanted: Wanted) -> _Columns:
    return _from_records(path, csv_records(path, io.StringIO(_decode(path), newline="")), wanted)


def tsv_records(lines: Iterable[str]) -> Iterator[Record]:
    """The lines of a TSV file that are not empty; they come without their line breaks, or with a carriage return."""
    stripped = ((number, line.removesuffix("\r")) for number, line in enumerate(lines, 1))
    return ((number, line.split("\t")) for number, line in stripped if line)


def csv_records(path: Path, lines: Iterable[str], longest: int = sys.maxsize) -> Iterator[Record]:
    """The records of a CSV file, separated by commas.

    Where numbers have a decimal comma, spreadsheets write semicolons: these separate if the first line has no comma.
    """
    lines = iter(lines)
    first = next(lines, "")
    bare = re.sub('"[^"]*"', "", first)
    return quoted_records(path, chain([first], lines), ";" if ";" in bare and "," not in bare else ",", longest)


def quoted_records(path: Path, lines: Iterable[str], delimiter: str, longest: int = sys.maxsize) -> Iterator[Record]:
    """The records of a file with quotes; its lines come with their line breaks.

    Raises:
        UserError: A quote is not closed, or a field has more than `longest` characters.
    """
    csv.field_size_limit(longest)  # a text may be longer than Python's 131,072
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
    except csv.Error as error:
        raise damaged(path, "quotes that open and close", f"line {reader.line_num}: {error}") from None


def _from_records(path: Path, records: Iterator[Record], wanted: Wanted) -> _Columns:
    names = header_of(path, records)
    places = {name: names.index(name) for name in _chosen(wanted, names)}
    columns: dict[str, list[object]] = {name: [] for name in places}
    rows: list[int] = []
    bad: list[tuple[int, str, str]] = []
    for index, (line, record) in enumerate(records):
        if len(record) != len(names):
            bad.append((index, *ragged(names, record, line)))
            continue
        rows.append(index)
        for name, place in places.items():
            columns[name].append(record[place])
    return _Columns(tuple(names), columns, rows, bad)


def header_of(path: Path, records: Iterator[Record]) -> list[str]:
    """Take the column names off the records of a file.

    Raises:
        UserError: There are none, or one twice.
    """
    header = next(records, None)
    if header is None:
        raise UserError(f"{path}: empty file", expected="a line of column names", found="nothing", todo="fill it")
    names = header[1]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise damaged(path, "column names that differ", f"{listing(twice)} more than once in line {header[0]}")
    return names


def ragged(names: Sequence[str], record: Sequence[str], line: int) -> tuple[str, str]:
    """What was expected of a line with another number of fields than the first, and what it has."""
    return f"{len(names)} fields in every line, as in the first", f"{len(record)} in line {line}"


def _read_jsonl(path: Path, wanted: Wanted) -> _Columns:
    found: dict[str, None] = {}
    records: list[dict[str, object]] = []
    rows: list[int] = []
    bad: list[tuple[int, str, str]] = []
    # Not splitlines(): a JSON text may hold U+2028 and its like as they are.
    for number, line in enumerate(_decode(path).split("\n"), 1):
        if not line.strip():
            continue
        record = json_object(line)
        if isinstance(record, str):
            bad.append((len(rows) + len(bad), "one JSON object a line", f"line {number}: {record}"))
            continue
        rows.append(len(rows) + len(bad))
        found.update(dict.fromkeys(record))
        records.append(record)
    if not records and not bad:
        raise UserError(f"{path}: empty file", expected="one JSON object a line", found="nothing", todo="fill it")
    columns = {name: [record.get(name) for record in records] for name in _chosen(wanted, list(found))}
    return _Columns(tuple(found), columns, rows, bad)


def json_object(line: str) -> dict[str, object] | str:
    """The object in a line; or what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and thousands of brackets
        return "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", None) or str(error)
    return record if isinstance(record, dict) else f"a {type(record).__name__}"


def _read_parquet(path: Path, wanted: Wanted) -> _Columns:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            found = tuple(file.schema_arrow.names)
            table = file.read(columns=_chosen(wanted, found))
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:  # of pyarrow, or of what it makes of damaged values: texts that are not UTF-8
        found_instead = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise damaged(path, "a whole Parquet file, with texts in UTF-8", found_instead) from None
    return _Columns(found, columns)


def _chosen(wanted: Wanted, found: Sequence[str]) -> list[str]:
    return list(found) if wanted is None else [name for name in wanted if name in found]


def check_path(path: Path) -> str:
    """Check that a file is there and of a format that is read.

    Returns:
        Its ending, which is a key of `READERS`.

    Raises:
        UserError: It is not.
    """
    ending = path.suffix.lower()
    if ending not in READERS:
        raise UserError(
            f"{path}: unknown format",
            expected=f"a file that ends in {listing(READERS)}",
            found=f"`{path.suffix}`" if path.suffix else "no ending",
            todo="convert the file, or rename it if it is one of these",
        )
    if not path.is_file():
        raise _special(path) if path.exists() and not path.is_dir() else _missing(path, tuple(READERS))
    return ending


def _at_home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~` of nobody
        return Path(name)


#: The formats, by the ending of a file's name. A new one is a reader above and a line here; a reader takes the path and
#: the columns that are wanted.
READERS: dict[str, Callable[[Path, Wanted], _Columns]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _decode(path: Path) -> str:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # a byte-order mark, as Excel writes it
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_utf8(path, f"byte {data[error.start]:#04x} in line {line}") from None


def not_utf8(path: Path, found: str) -> UserError:
    """The message about a file in another encoding."""
    return UserError(
        f"{path}: not UTF-8",
        expected="text in UTF-8",
        found=found,
        todo=f"convert it: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}",
    )


def damaged(path: Path, expected: str, found: str, line: bool = False) -> UserError:
    """The message about a file that is not what its name says; `line`: one line of it, which could be left out."""
    todo = "correct the file"
    if path.suffix.lower() == ".tsv":
        todo = "correct the line (a tab inside a text?), or set `tsv_quotes` if the file quotes its texts"
    if line:
        todo += f"; {DROP}"
    return UserError(f"{path}: cannot be read", expected=expected, found=found, todo=todo)


def _special(path: Path) -> UserError:
    """Return the error for a pipe or a device: data are read more than once, and by several processes."""
    return UserError(
        f"{path}: no ordinary file",
        expected="a data file, which can be read more than once",
        found="a pipe or a device",
        todo="write what it gives into a file first",
    )


def _missing(path: Path, endings: tuple[str, ...]) -> UserError:
    """Return the error for a missing file, with the data files that are in the nearest folder that exists."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    # Two levels only: the nearest existing folder may be the home folder.
    files = [file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.suffix.lower() in endings]
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    wanted = path.relative_to(folder).as_posix()
    return UserError(
        f"{path}: no such file" if not path.is_dir() else f"{path}: a folder",
        expected="a data file",
        found=f"in {folder}: {listing(names)}" if names else f"no data files in {folder}",
        todo=did_you_mean(wanted, names, "correct the path; it is relative to --data-dir or the configuration"),
    )
