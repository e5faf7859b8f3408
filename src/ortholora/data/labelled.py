"""A file with the answers of one task, read a window of rows at a time: for `evaluate --data`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.bad_rows import check_share, without_bad_rows
from ortholora.data.forms import FORMS
from ortholora.data.labels import are_hidden
from ortholora.data.lines import damaged
from ortholora.data.stream import StreamedRow, stream_rows
from ortholora.data.table import Table
from ortholora.data.task import Split
from ortholora.errors import UserError

#: Rows that are checked together; a message counts the bad ones among them.
_CHECKED = 65_536


class Counted(NamedTuple):
    """What a file has: rows to be scored, and rows that `bad_rows: drop` leaves out."""

    rows: int
    left_out: int


@dataclass(frozen=True)
class LabelledFile:
    """Rows with their answers; every loop over them reads the file anew.

    Attributes:
        path: The file.
        spec: The task's configuration: what its rows are, and what becomes of bad ones.
        labels: The classes, or the closed set of answers, that the run knows; None where there are none.
        text: The text columns.
        label: The column of the answers; of a chat the one of its messages.
    """

    path: Path
    spec: TaskConfig
    labels: tuple[str, ...] | None
    text: tuple[str, ...]
    label: str

    def windows(self, size: int) -> Iterator[Split]:
        """The good rows, at most `size` of them at a time.

        Raises:
            UserError: The file cannot be read, a column is missing, a row cannot be used, or an answer is unknown.
        """
        return (self._split(table) for table in self._tables(size))

    def check(self) -> Counted:
        """Read the whole file, without a model: what is wrong with it is known before the work, not in its middle.

        Raises:
            UserError: As `windows`; or there are no rows, no answers, or too many bad rows.
        """
        rows, hidden = 0, self.spec.has_targets
        bad: list[tuple[int, str]] = []
        for table in self._tables(_CHECKED):
            bad += table.dropped
            answers = table.columns[self.label]
            if not answers:
                continue
            rows, hidden = rows + len(answers), hidden and are_hidden(answers, self.labels)
            if not hidden:
                self._split(table)
        if rows and hidden:
            raise self._without_labels("-1 in every row, as published test sets have it")
        if bad:
            check_share(str(self.path), self.spec, bad, rows + len(bad))
        if not rows:
            raise UserError(
                f"{self.path}: no rows",
                expected="at least one row" + (f" of `{self.spec.only}`" if self._is_part else ""),
                found="none",
                todo="give a file with data",
            )
        return Counted(rows, len(bad))

    @property
    def _is_part(self) -> bool:
        return self.spec.split_by is not None and self.spec.only is not None

    def _split(self, table: Table) -> Split:
        _, (split,) = FORMS[self.spec.form].rows(self.spec, [table], self.labels)
        return split

    def _tables(self, size: int) -> Iterator[Table]:
        """The rows as they are, without those that `bad_rows: drop` leaves out."""
        also = [self.label, *self.spec.more_columns]
        rows = stream_rows(self.path, self.text, also, tsv_quotes=self.spec.tsv_quotes)
        mine = (row for row in rows if self._is_mine(row))
        while window := list(islice(mine, size)):
            yield without_bad_rows(self._table(window), self.spec, whole=False)

    def _is_mine(self, row: StreamedRow) -> bool:
        """Whether a row is of the task; in a file without the column that names tasks all are."""
        value = row.values.get(self.spec.split_by or "")
        return not self._is_part or value is None or str(value) == self.spec.only

    def _table(self, window: Sequence[StreamedRow]) -> Table:
        wrong = [(row.number, row.problem) for row in window if row.problem is not None]
        if wrong and self.spec.bad_rows == "error":
            number, problem = wrong[0]
            raise damaged(self.path, "rows that can be read", f"row {number}: {problem}", line=True)
        good = [row for row in window if row.problem is None]
        if good and not any(self.label in row.values for row in good):
            raise self._without_labels("no such column")
        names = dict.fromkeys([*self.text, self.label, *self.spec.more_columns])
        columns = {name: [row.values.get(name) for row in good] for name in names}
        table = Table(str(self.path), self.path.name, tuple(names), columns, self.text, self.label)
        return replace(table, positions=[row.number - 1 for row in good], dropped=tuple(wrong))

    def _without_labels(self, found: str) -> UserError:
        return UserError(
            f"{self.path} has no labels",
            expected=f"the right answer in column `{self.label}` of every row",
            found=found,
            todo="give a file with labels, or name their column with --label; `predict --data` answers a file without",
        )
