"""`bad_rows: drop`: rows that cannot be used are left out and listed, up to a share that is set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.forms import FORMS
from ortholora.data.table import Table
from ortholora.errors import UserError


def without_bad_rows(table: Table, spec: TaskConfig, whole: bool = True) -> Table:
    """Leave out the rows that `bad_rows: drop` allows to be left out; the table as it is without.

    A row with an unknown label is none of them: that is a question of `labels`, not of the row.

    Args:
        table: All rows that could be read; `dropped` has those that could not.
        spec: The task.
        whole: Whether these are all rows, of which `max_bad_rows` says a share.

    Raises:
        UserError: There are more of them than `max_bad_rows`.
    """
    if spec.bad_rows == "error":
        return table
    problems = _problems(table, spec)
    kept = [index for index, problem in enumerate(problems) if problem is None]
    own = [(table.row_number(i), problem) for i, problem in enumerate(problems) if problem is not None]
    dropped = tuple(sorted([*table.dropped, *own]))
    if whole:
        check_share(table.shown, spec, dropped, len(problems) + len(table.dropped))
    if not own:
        return replace(table, dropped=dropped)
    return replace(
        table,
        columns={name: [column[i] for i in kept] for name, column in table.columns.items()},
        positions=[table.row_number(i) - 1 for i in kept],
        dropped=dropped,
    )


def check_share(shown: str, spec: TaskConfig, dropped: Sequence[tuple[int, str]], total: int) -> None:
    """Refuse more bad rows than the task allows.

    Args:
        shown: How messages name the file.
        spec: The task.
        dropped: Number and problem of each of them.
        total: Rows of the file, the bad ones included.

    Raises:
        UserError: There are more.
    """
    if len(dropped) > spec.max_bad_rows * total:
        number, problem = dropped[0]
        raise UserError(
            f"{shown}: more bad rows than `max_bad_rows` of task `{spec.name}`",
            expected=f"at most {spec.max_bad_rows:.1%} of the rows",
            found=f"{len(dropped):,} of {total:,}, {len(dropped) / total:.1%}; the first is row {number}: {problem}",
            todo="look at the rows: is this the right file, and the right columns? If so, correct them or raise "
            "`max_bad_rows`",
        )


def _problems(table: Table, spec: TaskConfig) -> list[str | None]:
    """What is wrong with every row, as far as its columns are there."""
    length = len(next(iter(table.columns.values()), ()))
    found: list[str | None] = [None] * length
    problem = FORMS[spec.form].problem
    for name, column in table.columns.items():
        for index, value in enumerate(column):
            found[index] = found[index] or problem(spec, table, name, value)
    return found
