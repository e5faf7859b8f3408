"""The rows of a Parquet file, a few at a time: a file of kilobytes may hold gigabytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ortholora.data.limits import Held, check_columns
from ortholora.data.lines import damaged
from ortholora.errors import UserError

#: Rows that are decoded at a time.
_DECODED = 32


class Batch(NamedTuple):
    """A few rows.

    Attributes:
        columns: Name → values.
        rows: How many.
        bytes: About what they take in memory.
    """

    columns: dict[str, list[object]]
    rows: int
    bytes: int


def parquet_batches(
    path: Path, choose: Callable[[Sequence[str]], list[str]]
) -> tuple[tuple[str, ...], Iterator[Batch]]:
    """Open a Parquet file.

    Args:
        path: The file.
        choose: The columns to read, out of those that are there.

    Returns:
        Names of all columns, and the rows.

    Raises:
        UserError: It is damaged, or has too many columns; so do the rows while they are read.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
    except Exception as error:  # of pyarrow
        raise _damaged(path, error) from None
    check_columns(path, len(names))
    return names, _batches(path, choose(names))


def _batches(path: Path, wanted: list[str]) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_DECODED, columns=wanted):
                columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                number += batch.num_rows
                yield Batch(columns, batch.num_rows, batch.nbytes + Held.VALUE * batch.num_rows * len(columns))
    except Exception as error:  # of pyarrow, or of what it makes of damaged values: texts that are not UTF-8
        raise _damaged(path, error, f" after row {number}") from None


def _damaged(path: Path, error: Exception, where: str = "") -> UserError:
    found = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}{where}"
    return damaged(path, "a whole Parquet file, with texts in UTF-8", found)
