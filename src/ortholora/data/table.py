"""One split as its source gives it: columns with raw values, and the rows checked out of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ortholora.errors import UserError, did_you_mean, listing
from ortholora.text.texts import Texts
from ortholora.text.utf8 import is_text

#: What a message about a row says besides.
DROP = "or leave such rows out: `bad_rows: drop`"


@dataclass(frozen=True)
class Table:
    """Raw columns of a split.

    Attributes:
        shown: How messages name the source (a path, a hub id).
        source: How a result names the source: the same on every machine.
        found: All column names that are there.
        columns: The values of the columns that were asked for, as far as they are there.
        text: The one or two text columns.
        label: The label column.
        positions: Index of each row in the source, where only some of its rows are here.
        dropped: The rows that were left out: number and reason.
        classes: The source's own class names in its own order, where it has them (a hub's `ClassLabel`).
    """

    shown: str
    source: str
    found: tuple[str, ...]
    columns: Mapping[str, Sequence[object]]
    text: tuple[str, ...]
    label: str
    classes: tuple[str, ...] | None = None
    positions: Sequence[int] | None = None
    dropped: tuple[tuple[int, str], ...] = ()

    def row_number(self, index: int) -> int:
        """The number of a row in its source, the first row of data being row 1."""
        return 1 + (index if self.positions is None else self.positions[index])

    @property
    def numbers(self) -> list[int] | None:
        """The number of each row in its source; None where all of its rows are here."""
        return None if self.positions is None else [1 + position for position in self.positions]


@dataclass(frozen=True)
class Rows:
    """Checked rows: every text has content, every label is there.

    Attributes:
        table: Where they come from, for messages.
        texts: The texts of each row.
        labels: One text a row, also for regression.
    """

    table: Table
    texts: list[Texts]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def check_rows(table: Table) -> Rows:
    """Check a table's columns and turn them into rows.

    Raises:
        UserError: A column is missing, there are no rows, a text is empty, or a label is missing.
    """
    require_columns(table, [*(("text", name) for name in table.text), ("label", table.label)])
    texts = [check_texts(table, column, "text") for column in table.text]
    labels = [label.strip() for label in check_texts(table, table.label, "label")]
    return Rows(table, [Texts(row) for row in zip(*texts, strict=True)], labels)


def require_columns(table: Table, wanted: Sequence[tuple[str, str]]) -> None:
    """Check that columns are there, and rows in them.

    Args:
        table: The table.
        wanted: Key of the task's configuration and the column that it names.

    Raises:
        UserError: One is not.
    """
    for key, column in wanted:
        if column not in table.columns:
            raise UserError(
                f"{table.shown}: no column `{column}`",
                expected=f"the {key} column `{column}`",
                found=f"the columns {listing(table.found)}",
                todo=did_you_mean(column, table.found, f"set the task's `{key}` to the column's name"),
            )
    if not len(table.columns[wanted[-1][1]]):
        raise UserError(
            f"{table.shown}: no rows",
            expected="at least one row of data",
            found="column names only" if table.found else "nothing",
            todo="give a file with data",
        )


def row_numbers(table: Table, indices: Sequence[int], total: int) -> str:
    """Return "row 3" or "rows 3, 7 and 9 more (11 of 40)"; the first row after a header is row 1."""
    shown = ", ".join(str(table.row_number(index)) for index in indices[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    plural = "s" if len(indices) > 1 else ""
    return f"row{plural} {shown}{more} ({len(indices)} of {total}; the first row of data is row 1)"


def check_texts(table: Table, column: str, key: str, what: str | None = None) -> list[str]:
    """The values of a column as texts, none of them empty.

    Args:
        table: The table.
        column: The column.
        key: Key of the task's configuration that names it.
        what: What a row has there, for messages. Default: the key.

    Raises:
        UserError: A value is missing, blank, or no plain value.
    """
    values, what = table.columns[column], what or key
    odd = next((i for i, value in enumerate(values) if isinstance(value, _ODD)), None)
    if odd is not None:
        raise UserError(
            f"{table.shown}: column `{column}` does not hold plain values",
            expected="a text or a number in every row",
            found=f"a {type(values[odd]).__name__} in row {table.row_number(odd)}",
            todo=f"point the task's `{key}` to another column, or convert this one to text",
        )
    cells = [as_text(value) for value in values]
    empty = [index for index, cell in enumerate(cells) if cell is None or not cell.strip()]
    if empty:
        found = "null" if cells[empty[0]] is None else "an empty text"
        raise UserError(
            f"{table.shown}: column `{column}` has rows without a {what}",
            expected=f"a {what} in every row",
            found=f"{found} in {row_numbers(table, empty, len(cells))}",
            todo=f"fill in or remove these rows, {DROP}",
        )
    broken = [index for index, cell in enumerate(cells) if cell is not None and not is_text(cell)]
    if broken:
        raise UserError(
            f"{table.shown}: column `{column}` has a {what} that is no text",
            expected="text that UTF-8 can hold",
            found=f"half of a character in {row_numbers(table, broken, len(cells))}",
            todo=f"correct these rows, {DROP}",
        )
    return [cell for cell in cells if cell is not None]


_ODD = (list, dict, bytes, tuple)


def cell_problem(value: object, what: str) -> str | None:
    """What `check_texts` would say of one value; None of a good one."""
    if isinstance(value, _ODD):
        return f"a {type(value).__name__} in the place of a {what}"
    cell = as_text(value)
    if cell is None or not cell.strip():
        return f"no {what}"
    return None if is_text(cell) else f"half of a character in a {what}"


def as_text(value: object) -> str | None:
    """Return the value as a file of text would hold it: 0 and 0.0 are "0", true is "true", null is `None`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)
