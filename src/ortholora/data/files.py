"""Read a split from a local file: TSV, CSV, JSONL or Parquet.

The first three are read with the standard library instead of pandas: no text ever turns into a missing
value, no integer into a float, and a bad line is known by its number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ortholora.data.limits import Held, check_columns
from ortholora.data.lines import Record, csv_records, damaged, header_of, lines_of, quoted_records, ragged, tsv_records
from ortholora.data.parquet import parquet_batches
from ortholora.data.table import Table
from ortholora.errors import UserError, did_you_mean, listing
from ortholora.text.nesting import DEEPEST, TOO_DEEP, is_too_deep

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
    return _from_records(path, tsv_records(lines_of(path, "\n")), wanted)


def _read_quoted_tsv(path: Path, wanted: Wanted) -> _Columns:
    return _from_records(path, quoted_records(path, lines_of(path, ""), "\t"), wanted)


def _read_csv(path: Path, wanted: Wanted) -> _Columns:
    return _from_records(path, csv_records(path, lines_of(path, "")), wanted)


def _from_records(path: Path, records: Iterator[Record], wanted: Wanted) -> _Columns:
    names, held = header_of(path, records), Held(path)
    places = {name: names.index(name) for name in _chosen(wanted, names)}
    columns: dict[str, list[object]] = {name: [] for name in places}
    rows: list[int] = []
    bad: list[tuple[int, str, str]] = []
    for index, (line, record) in enumerate(records):
        if len(record) != len(names):
            bad.append((index, *ragged(names, record, line)))
            held.add(bad[-1])
            continue
        rows.append(index)
        kept = [record[place] for place in places.values()]
        held.add(kept)
        _append(columns, kept)
    return _Columns(tuple(names), columns, rows, bad)


def _read_jsonl(path: Path, wanted: Wanted) -> _Columns:
    found: dict[str, None] = {}
    columns: dict[str, list[object]] = {} if wanted is None else {name: [] for name in wanted}
    rows: list[int] = []
    bad: list[tuple[int, str, str]] = []
    held = Held(path)
    # Lines end with "\n" alone: a JSON text may hold U+2028 and its like as they are.
    for number, line in enumerate(lines_of(path, "\n"), 1):
        if not line.strip():
            continue
        record = json_object(line)
        if isinstance(record, str):
            bad.append((len(rows) + len(bad), "one JSON object a line", f"line {number}: {record}"))
            held.add(bad[-1])
            continue
        if not record.keys() <= found.keys():
            found.update(dict.fromkeys(record))
            check_columns(path, len(found))
        for name in () if wanted is not None else record.keys() - columns.keys():
            columns[name] = [None] * len(rows)
            held.add_bytes(Held.VALUE * len(rows), 0)
        rows.append(len(rows) + len(bad))
        kept = [record.get(name) for name in columns]
        held.add(kept, len(line))
        _append(columns, kept)
    if not rows and not bad:
        raise UserError(f"{path}: empty file", expected="one JSON object a line", found="nothing", todo="fill it")
    return _Columns(tuple(found), {name: columns[name] for name in _chosen(wanted, list(found))}, rows, bad)


def _append(columns: dict[str, list[object]], row: Sequence[object]) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def json_object(line: str) -> dict[str, object] | str:
    """The object in a line; or what is wrong with it."""
    try:
        record = json.loads(line)
    except RecursionError:  # thousands of brackets
        return TOO_DEEP
    except ValueError as error:  # also a number of thousands of digits
        return getattr(error, "msg", None) or str(error)
    if line.count("[") + line.count("{") > DEEPEST and is_too_deep(record):
        return TOO_DEEP
    return record if isinstance(record, dict) else f"a {type(record).__name__}"


def _read_parquet(path: Path, wanted: Wanted) -> _Columns:
    columns: dict[str, list[object]] = {}
    held = Held(path)
    found, batches = parquet_batches(path, lambda names: _chosen(wanted, names))
    for batch in batches:
        held.add_bytes(batch.bytes, batch.rows)
        for name, values in batch.columns.items():
            columns.setdefault(name, []).extend(values)
    return _Columns(found, columns or {name: [] for name in _chosen(wanted, found)})


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
            todo=_TODO.get(ending, "convert the file, or rename it if it is one of these"),
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


#: What to do about files of other endings.
_TODO = {
    **dict.fromkeys((".gz", ".zst", ".bz2", ".xz", ".zip"), "unpack it first: compressed files are not read"),
    ".json": "write one object a line into a .jsonl file: jq -c '.[]' FILE > NEW.jsonl",
    ".xlsx": "save the sheet as CSV in UTF-8",
}


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
    if path.is_symlink():
        return UserError(
            f"{path}: a link to nowhere",
            expected="a data file",
            found=f"a symbolic link to {os.readlink(path)}, which cannot be reached",
            todo="make that file, or correct the link",
        )
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
