"""The forms of data: how tables become rows with targets. A new form is two functions and a line below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ortholora.config.tasks.base import Form
from ortholora.config.tasks.chat import TOOLS
from ortholora.data.dialogues import answer_indices, chat_problem, check_chats, check_completions
from ortholora.data.labels import class_indices, class_names, is_number, regression_targets
from ortholora.data.table import Table, cell_problem, check_rows
from ortholora.data.task import Split
from ortholora.text.dialogue import Dialogue
from ortholora.text.messages import tools_problem

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


def _text_problem(spec: Any, table: Table, name: str, value: object) -> str | None:
    return cell_problem(value, f"value of `{name}`")


def _number_problem(spec: Any, table: Table, name: str, value: object) -> str | None:
    problem = _text_problem(spec, table, name, value)
    if problem is None and name == table.label and not is_number(str(value)):
        return f"no number in `{name}`"
    return problem


def _message_problem(spec: Any, table: Table, name: str, value: object) -> str | None:
    if name == table.label:
        return chat_problem(value)
    return tools_problem(value) if name == (spec.tools or TOOLS) else _text_problem(spec, table, name, value)


class FormReader(NamedTuple):
    """How data of a form are read.

    Attributes:
        rows: Reads them from the task's settings, its tables, and the classes where they are known already: else those
            of the first table. It raises a `UserError` where the data make no sense.
        problem: What is wrong with one value, from the task's settings, its table, its column and itself; None where
            nothing is.
    """

    rows: Callable[[Any, Sequence[Table], _Labels], _Parts]
    problem: Callable[[Any, Table, str, object], str | None]


#: What reads each form that a kind of task may name.
FORMS: dict[Form, FormReader] = {
    "classes": FormReader(_classes, _text_problem),
    "values": FormReader(_values, _number_problem),
    "completions": FormReader(_completions, _text_problem),
    "chats": FormReader(_chats, _message_problem),
}
