"""The forms of data: how the tables of a task become rows with targets. A new form is a function and a line below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ortholora.config.tasks.base import Form
from ortholora.data.dialogues import answer_indices, check_chats, check_completions
from ortholora.data.labels import class_indices, class_names, regression_targets
from ortholora.data.table import Table, check_rows
from ortholora.data.task import Split
from ortholora.text.dialogue import Dialogue

#: Class names (None where there are none), and the rows of each table.
_Labels = tuple[str, ...] | None
_Parts = tuple[_Labels, list[Split]]


def _classes(spec: Any, tables: Sequence[Table], known: _Labels = None) -> _Parts:
    """Texts, each with a class."""
    parts = [check_rows(table) for table in tables]
    labels = known or class_names(spec, parts[0])
    return labels, [_split(rows.table, rows.texts, class_indices(rows, labels)) for rows in parts]


def _values(spec: Any, tables: Sequence[Table], known: _Labels = None) -> _Parts:
    """Texts, each with a number."""
    parts = [check_rows(table) for table in tables]
    return None, [_split(rows.table, rows.texts, regression_targets(rows)) for rows in parts]


def _completions(spec: Any, tables: Sequence[Table], known: _Labels = None) -> _Parts:
    """Prompts, each with its completion."""
    return _answered(spec, tables, check_completions)


def _chats(spec: Any, tables: Sequence[Table], known: _Labels = None) -> _Parts:
    """Messages, the last one from the assistant, and the tools of each row."""
    compared = spec.labels is not None or spec.measure.generates
    return _answered(spec, tables, lambda table: check_chats(table, spec.tools, compared))


def _answered(spec: Any, tables: Sequence[Table], check: Callable[[Table], Sequence[Dialogue]]) -> _Parts:
    labels = None if spec.labels is None else tuple(spec.labels)
    parts = [check(table) for table in tables]
    pairs = zip(tables, parts, strict=True)
    return labels, [_split(table, rows, answer_indices(spec, table, rows)) for table, rows in pairs]


def _split(table: Table, rows: Sequence[Any], targets: Sequence[int] | Sequence[float]) -> Split:
    return Split(rows, targets, table.shown, table.numbers)


#: What reads each form that a kind of task may name, from the task's settings, its tables, and the classes where they
#: are known already: else those of the first table. It raises a `UserError` where the data make no sense.
FORMS: dict[Form, Callable[[Any, Sequence[Table], _Labels], _Parts]] = {
    "classes": _classes,
    "values": _values,
    "completions": _completions,
    "chats": _chats,
}
