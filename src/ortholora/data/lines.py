"""The lines and records of a text file, one after the other: the one way in which TSV, CSV and JSON lines are read."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from ortholora.data.limits import ROW, check_columns, longest_row, too_much
from ortholora.data.table import DROP
from ortholora.errors import UserError, listing

#: A line's number, from 1 on, and its fields.
Record = tuple[int, list[str]]
#: How files begin that are no text in UTF-8, whatever their names say: what they are, and what to do.
_NO_TEXT = {
    b"\x1f\x8b": ("data compressed with gzip", "unpack it: gunzip -c FILE > NEW"),
    b"\x28\xb5\x2f\xfd": ("data compressed with zstd", "unpack it: zstd -dc FILE > NEW"),
    b"BZh": ("data compressed with bzip2", "unpack it: bunzip2 -c FILE > NEW"),
    b"\xfd7zXZ": ("data compressed with xz", "unpack it: xz -dc FILE > NEW"),
    b"PK\x03\x04": ("a zip archive, as workbooks of Excel are", "unpack it, or save the sheet as CSV in UTF-8"),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
    b"\xff\xfe": ("UTF-16", "convert it: iconv -f utf-16 -t utf-8 FILE > NEW"),
    b"\xfe\xff": ("UTF-16", "convert it: iconv -f utf-16 -t utf-8 FILE > NEW"),
}


def lines_of(path: Path, newline: str) -> Iterator[str]:
    """The lines with their line breaks; memory does not grow with the file.

    Args:
        path: The file.
        newline: As `open` takes it: what ends a line.

    Raises:
        UserError: It is no text in UTF-8, or a line is longer than any row.
    """
    number, longest = 0, longest_row()
    _check_beginning(path)
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            while line := file.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise _too_long(path, longest, f"a longer one, line {number}")
                yield line
        except UnicodeDecodeError as error:
            # What was decoded before holds the rest of one line, which has no end yet.
            line_number = (
                number + 1 + len(re.findall(rb"\r\n?|\n" if newline == "" else rb"\n", error.object[: error.start]))
            )
            found = f"byte {error.object[error.start]:#04x} in line {line_number}"
            todo = f"convert it: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}"
            raise _not_utf8(path, found, todo) from None


def tsv_records(lines: Iterable[str]) -> Iterator[Record]:
    """The lines of a TSV file that are not empty; a carriage return before the line break is none of the text."""
    stripped = ((number, line.removesuffix("\n").removesuffix("\r")) for number, line in enumerate(lines, 1))
    return ((number, line.split("\t")) for number, line in stripped if line)


def csv_records(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    """The records of a CSV file, separated by commas.

    Where numbers have a decimal comma, spreadsheets write semicolons: these separate if the first line has no comma.
    """
    lines = iter(lines)
    first = next(lines, "")
    bare = re.sub('"[^"]*"', "", first)
    return quoted_records(path, chain([first], lines), ";" if ";" in bare and "," not in bare else ",")


def quoted_records(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """The records of a file with quotes.

    Raises:
        UserError: A quote is not closed, or a record is longer than any row.
    """
    csv.field_size_limit(sys.maxsize)  # a text may be longer than Python's 131,072
    longest, length = longest_row(), 0

    def counted() -> Iterator[str]:
        nonlocal length
        for number, line in enumerate(lines, 1):
            length += len(line)
            if length > longest:
                raise _too_long(path, longest, f"a longer one, up to line {number} (a quote not closed?)")
            yield line

    reader = csv.reader(counted(), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            length = 0
            if record:
                yield reader.line_num, record
    except csv.Error as error:
        raise damaged(path, "quotes that open and close", f"line {reader.line_num}: {error}") from None


def header_of(path: Path, records: Iterator[Record]) -> list[str]:
    """Take the column names off the records of a file.

    Raises:
        UserError: There are none, too many, or one twice.
    """
    header = next(records, None)
    if header is None:
        raise UserError(f"{path}: empty file", expected="a line of column names", found="nothing", todo="fill it")
    line, names = header
    check_columns(path, len(names))
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise damaged(path, "column names that differ", f"{listing(twice)} more than once in line {line}")
    return names


def ragged(names: Sequence[str], record: Sequence[str], line: int) -> tuple[str, str]:
    """What was expected of a line with another number of fields than the first, and what it has."""
    return f"{len(names)} fields in every line, as in the first", f"{len(record)} in line {line}"


def damaged(path: Path, expected: str, found: str, line: bool = False) -> UserError:
    """The message about a file that is not what its name says; `line`: one line of it, which could be left out."""
    todo = "correct the file"
    if path.suffix.lower() == ".tsv":
        todo = "correct the line (a tab inside a text?), or set `tsv_quotes` if the file quotes its texts"
    if line:
        todo += f"; {DROP}"
    return UserError(f"{path}: cannot be read", expected=expected, found=found, todo=todo)


def _check_beginning(path: Path) -> None:
    """Refuse what is no text at all, and say what it is."""
    with path.open("rb") as file:
        beginning = file.read(1000)
    for start, (found, todo) in _NO_TEXT.items():
        if beginning.startswith(start):
            raise _not_utf8(path, found, todo)
    if b"\0" in beginning:
        found = f"a NUL in byte {beginning.index(0) + 1}, as files have that are no text, or are in UTF-16"
        raise _not_utf8(path, found, "give the right file, or convert it: iconv -f utf-16le -t utf-8 FILE > NEW")


def _too_long(path: Path, longest: int, found: str) -> UserError:
    expected = f"rows of at most {longest:,} characters"
    return too_much(path, expected, found, ROW)


def _not_utf8(path: Path, found: str, todo: str) -> UserError:
    return UserError(f"{path}: not UTF-8", expected="text in UTF-8", found=found, todo=todo)
