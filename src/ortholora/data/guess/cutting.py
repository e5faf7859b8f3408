"""The parts of a file that holds several; and dev rows cut off training rows, for tasks that have none of their own.

Which rows are cut off is decided by the SHA-256 of their texts: the same file gives the same rows on every machine,
and rows with equal texts stay together, so that no dev row was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from ortholora.data.guess.sources import PART_OF
from ortholora.data.table import Table
from ortholora.errors import UserError

#: Every tenth row, but no more than these.
SHARE, MOST = 0.1, 1000
#: Fewer dev rows than these say nothing.
LEAST = 10
#: Names of columns that say which part a row belongs to.
_PART_COLUMNS = {"split", "part", "partition", "subset", "set", "fold"}


def cut_dev_rows(table: Table, text: Sequence[str]) -> tuple[list[int], list[int]]:
    """Choose the dev rows of a table.

    Args:
        table: All training rows, with all columns.
        text: The columns whose texts decide.

    Returns:
        Indices of the rows to train on, and of those to evaluate on; each in the table's order.

    Raises:
        UserError: The table is too small to be cut.
    """
    count = len(table.columns[text[0]])
    by_text: dict[str, list[int]] = defaultdict(list)
    for row in range(count):
        texts = [table.columns[column][row] for column in text]
        if all(value is not None and str(value).strip() for value in texts):  # the others are no rows to evaluate on
            by_text[_digest([_asked(text) for text in texts])].append(row)
    wanted, dev = min(MOST, round(SHARE * count)), set[int]()
    for digest in sorted(by_text):
        if len(dev) >= wanted:
            break
        dev.update(by_text[digest])
    if not LEAST <= len(dev) <= count // 2:
        raise UserError(
            f"{table.shown}: too few rows to cut dev rows off",
            expected=f"at least {round(LEAST / SHARE)} different rows, or a file of dev rows",
            found=f"{count} rows, {len(by_text)} of them different",
            todo="give a dev file beside it, for example with `dev` in its name",
        )
    return [row for row in range(count) if row not in dev], sorted(dev)


def parts_inside(table: Table) -> tuple[str, dict[str, list[int]]] | None:
    """The parts of a table that has a column which says of each row whether it is for training, dev or test.

    Returns:
        The column, and the indices of the rows of each part; None where there is no such column, or it is of no use: a
        value that names no part, nothing to train on, or nothing else.
    """
    for column in table.found:
        if column.lower() not in _PART_COLUMNS:
            continue
        rows: dict[str, list[int]] = defaultdict(list)
        for row, value in enumerate(table.columns[column]):
            rows[PART_OF.get(str(value).strip().lower(), "")].append(row)
        if "" not in rows and "train" in rows and len(rows) > 1:
            return column, dict(rows)
    return None


def lines_of(table: Table, rows: Sequence[int]) -> str:
    """Rows of a table as JSON lines, with all of its columns."""
    columns = table.columns
    return "".join(
        json.dumps({name: columns[name][row] for name in table.found}, ensure_ascii=False, default=str) + "\n"
        for row in rows
    )


def _asked(value: object) -> object:
    """What a row asks: of a chat, the messages before the last answer."""
    answered = (
        isinstance(value, list) and value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant"
    )
    return value[:-1] if answered else value  # type: ignore[index]


def _digest(texts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(texts, ensure_ascii=True, default=str).encode("ascii")).hexdigest()
