"""The rows of a file one after the other, for files that need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ortholora.data.files import check_path, json_object
from ortholora.data.lines import Record, csv_records, header_of, lines_of, quoted_records, ragged, tsv_records
from ortholora.data.parquet import parquet_batches
from ortholora.errors import UserError, did_you_mean, listing


@dataclass(frozen=True)
class StreamedRow:
    """A row of a file.

    Attributes:
        number: Its number; the first row of data is row 1.
        values: The wanted columns, as far as the row has them.
        problem: Why it could not be read; None for a good one.
    """

    number: int
    values: dict[str, object] = field(default_factory=dict)
    problem: str | None = None


def stream_rows(
    path: Path, needed: Sequence[str], also: Sequence[str] = (), *, tsv_quotes: bool = False
) -> Iterator[StreamedRow]:
    """Read a file row by row; memory does not grow with it.

    Args:
        path: TSV, CSV, JSONL or Parquet, by its ending.
        needed: Columns that must be there. A row of JSON lines may lack one: that is a matter of the row.
        also: Columns that are read as far as they are there.
        tsv_quotes: Whether double quotes in a .tsv file quote.

    Yields:
        Every row; one that cannot be read has a `problem`.

    Raises:
        UserError: The file is missing, of an unknown format or damaged, or a needed column is missing.
    """
    ending = check_path(path)
    if ending == ".jsonl":
        yield from _json_rows(path, (*needed, *also))
    elif ending == ".parquet":
        yield from _parquet_rows(path, needed, also)
    elif ending == ".csv":
        yield from _fields(path, csv_records(path, lines_of(path, "")), needed, also)
    elif tsv_quotes:
        yield from _fields(path, quoted_records(path, lines_of(path, ""), "\t"), needed, also)
    else:
        yield from _fields(path, tsv_records(lines_of(path, "\n")), needed, also)


def _fields(path: Path, records: Iterator[Record], needed: Sequence[str], also: Sequence[str]) -> Iterator[StreamedRow]:
    names = header_of(path, records)
    _check_columns(path, names, needed)
    places = {name: names.index(name) for name in (*needed, *also) if name in names}
    for number, (line, record) in enumerate(records, 1):
        if len(record) == len(names):
            yield StreamedRow(number, {name: record[place] for name, place in places.items()})
        else:
            expected, found = ragged(names, record, line)
            yield StreamedRow(number, problem=f"{found}; expected {expected}")


def _json_rows(path: Path, wanted: Sequence[str]) -> Iterator[StreamedRow]:
    number = 0
    for line in lines_of(path, "\n"):
        if not line.strip():
            continue
        number += 1
        record = json_object(line)
        if isinstance(record, str):
            yield StreamedRow(number, problem=f"no JSON object: {record}")
        else:
            yield StreamedRow(number, {name: record[name] for name in wanted if name in record})


def _parquet_rows(path: Path, needed: Sequence[str], also: Sequence[str]) -> Iterator[StreamedRow]:
    def chosen(names: Sequence[str]) -> list[str]:
        _check_columns(path, names, needed)
        return [name for name in (*needed, *also) if name in names]

    number = 0
    for batch in parquet_batches(path, chosen)[1]:
        for values in zip(*batch.columns.values(), strict=True):
            number += 1
            yield StreamedRow(number, dict(zip(batch.columns, values, strict=True)))


def _check_columns(path: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in names:
            raise UserError(
                f"{path}: no column `{name}`",
                expected=f"the columns {listing(needed)}",
                found=f"the columns {listing(names)}",
                todo=did_you_mean(name, names, "rename the column, or name another one with --text"),
            )
