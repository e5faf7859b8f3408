"""What the columns of a table are: its texts, its labels, and the kind of task that they make.

Names that the field uses are taken at their word. Anything else is a guess out of the values, and `unsure` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from ortholora.data.guess.names import ANSWERS, ASIDE, IDS, LABELS, PROMPTS, TASK_NAMES, TEXTS, by_name, pairs_of, plain
from ortholora.data.labels import is_number
from ortholora.data.table import Table, as_text
from ortholora.errors import UserError, listing

Kind = Literal["classification", "regression", "completion", "chat"]

#: More different labels than these are no classes, unless the column's name says so; nor are labels that hardly repeat.
_MOST_CLASSES, _REPEATS = 50, 3
#: Whole numbers with more different values than these are a scale, not classes.
_MOST_WHOLE = 20
#: A column of numbers may have so large a share of other values ("n/a"), and one of labels so large a share of gaps.
_FEW = 0.05
#: Between the two columns of a pair, where they are a choice; and how many columns are offered as pairs.
PAIRED, _MOST_PAIRED = " + ", 4
#: Names of columns whose whole numbers are a scale; and how many values it has at least, if they are below 0.
_SCALES = {"score", "similarity", "rating", "ratings", "stars", "quality", "grade", "points"}
_LEAST_SIGNED = 4
#: What to do about chats as ShareGPT has them.
_SHAREGPT = (
    "write the messages as {role, content} and not as {from, value}: from `human` becomes role `user`, from `gpt` role "
    "`assistant`, value becomes content"
)
#: Most tasks that one column may name.
_MOST_TASKS = 64


@dataclass
class Shape:
    """What a table holds.

    Attributes:
        kind: The kind of task.
        text: The text columns: one or two; the prompt's or the messages' for a language model.
        label: The column of labels or completions; that of the messages for a chat.
        split_by: The column that names the task of each row.
        unsure: What was guessed out of values: key of the configuration → the other choices.
    """

    kind: Kind
    text: tuple[str, ...]
    label: str
    split_by: str | None = None
    unsure: dict[str, list[str]] = field(default_factory=dict)


def shape_of(table: Table) -> Shape:
    """Guess what a table holds.

    Args:
        table: A table with all of its columns.

    Raises:
        UserError: Nothing in it looks like the rows of a task.
    """
    shape = _chat(table) or _completion(table) or _labelled(table)
    if shape is None:
        raise UserError(
            f"{table.shown}: no task was recognised",
            expected="a text and a label, a prompt and a completion, or a list of messages in every row",
            found=f"the columns {listing(table.found)}",
            todo=_SHAREGPT
            if any(_holds_messages(column, "from", "value") for column in table.columns.values())
            else "rename the columns (`text` and `label`, `prompt` and `completion`, `messages`), or write the "
            "configuration by hand; examples/own_data.yaml is the smallest example",
        )
    shape.split_by = _task_column(table, shape)
    if shape.split_by is not None:
        shape.unsure["split_by"] = ["no"]
    return shape


def values_of(table: Table, column: str) -> list[str]:
    """The values of a column that are there, as texts."""
    values = [(as_text(value) or "").strip() for value in table.columns[column]]
    return [value for value in values if value]


def kind_of_labels(values: Sequence[str], column: str = "") -> tuple[Kind, bool]:
    """Whether labels are classes or numbers on a scale, and whether that is sure.

    Two whole numbers are classes. More are a scale where the column's name says so (a score, stars), where there are
    many, or where some are below 0. Those from 0 on without a gap are the numbers of classes. The rest (1 to 5 under
    another name) is taken for classes, and not sure.
    """
    known = [value for value in values if is_number(value)]
    if not known or not _nearly_all(known, values):
        return "classification", True
    numbers = {float(value) for value in known}
    if not all(number.is_integer() for number in numbers):
        return "regression", True
    if len(numbers) <= 2:
        return "classification", True
    signed = min(numbers) < 0 and len(numbers) >= _LEAST_SIGNED
    if len(numbers) > _MOST_WHOLE or signed or plain(column) in _SCALES:
        return "regression", False
    return "classification", numbers == set(range(len(numbers)))


def _nearly_all(some: Sequence[object], values: Sequence[object]) -> bool:
    return len(some) >= (1 - _FEW) * len(values)


def _chat(table: Table) -> Shape | None:
    found = [name for name in table.found if _holds_messages(table.columns[name])]
    if not found:
        return None
    name = "messages" if "messages" in found else found[0]
    others = [other for other in found if other != name]
    unsure = {"messages": others} if others and name != "messages" else {}
    return Shape("chat", (name,), name, unsure=unsure)


def _holds_messages(values: Sequence[object], role: str = "role", content: str = "content") -> bool:
    first = next((value for value in values if value is not None), None)
    return (
        isinstance(first, list)
        and bool(first)
        and all(isinstance(message, dict) and role in message and content in message for message in first)
    )


def _completion(table: Table) -> Shape | None:
    prompt, answer = by_name(table.found, PROMPTS), by_name(table.found, ANSWERS)
    if prompt is None or answer is None:
        return None
    if {"prompt", "completion"} <= set(table.found):
        return Shape("completion", ("prompt",), "completion")
    values = values_of(table, answer)
    if not _is_free(values):
        return None
    return Shape("completion", (prompt,), answer, unsure={"kind": ["classification"]} if len(set(values)) < 100 else {})


def _is_free(values: Sequence[str]) -> bool:
    """Whether answers are texts of their own, not a few that come again and again."""
    different = len(set(values))
    return different > _MOST_CLASSES and different * _REPEATS > len(values) and not all(map(is_number, values))


def _labelled(table: Table) -> Shape | None:
    label, unsure = _label_column(table)
    if label is None:
        return None
    text, others = _text_columns(table, label)
    if not text:
        return None
    if others:
        unsure["text"] = others
    kind, sure = kind_of_labels(values_of(table, label), label)
    if not sure:
        unsure["kind"] = ["classification" if kind == "regression" else "regression"]
    return Shape(kind, text, label, unsure=unsure)


def _label_column(table: Table) -> tuple[str | None, dict[str, list[str]]]:
    """The label column, and what else it might be where its name does not tell."""
    named = by_name(table.found, [*LABELS, *ANSWERS])
    if named is not None:
        return named, {}
    texts = {name for pair in _pairs(table) for name in pair}
    able = [name for name in _flat(table) if name not in texts and _could_be_labels(values_of(table, name))]
    if not able:
        return None, {}
    best = max(reversed(able), key=lambda name: (plain(name) not in ASIDE, _is_full(table, name)))
    others = [name for name in table.found if name != best]
    likely, unlikely = [name for name in others if name in able], [name for name in others if name not in able]
    return best, {"label": likely + unlikely} if likely else {}


def _flat(table: Table) -> list[str]:
    """The columns whose values are no lists or objects, and that are no mere numbers of rows."""
    nested = {name for name in table.found if any(isinstance(v, (dict, list)) for v in table.columns[name][:100])}
    return [name for name in table.found if name not in nested and plain(name) not in IDS]


def _is_full(table: Table, name: str) -> bool:
    """Whether a column has a value in nearly every row."""
    return _nearly_all(values_of(table, name), table.columns[name])


def _could_be_labels(values: Sequence[str]) -> bool:
    counts = Counter(values)
    if len(counts) < 2:
        return False
    classes = len(counts) <= _MOST_CLASSES and len(values) >= _REPEATS * len(counts)
    return classes or _nearly_all([value for value in values if is_number(value)], values)


def _text_columns(table: Table, label: str) -> tuple[tuple[str, ...], list[str]]:
    """The text columns, and the other choices."""
    for pair in _pairs(table):
        if label not in pair:
            return pair, []
    columns = [name for name in _flat(table) if name != label]
    named = by_name(columns, TEXTS)
    if named is not None:
        return (named,), []
    texts = [name for name in columns if _could_be_text(values_of(table, name))]
    longest = sorted(texts, key=lambda name: -sum(map(len, values_of(table, name))))
    if len(longest) == 2:  # two texts beside one label are a pair more often than not
        return tuple(texts), longest
    return tuple(longest[:1]), [*longest[1:], *(PAIRED.join(pair) for pair in combinations(texts[:_MOST_PAIRED], 2))]


def _pairs(table: Table) -> list[tuple[str, str]]:
    """Pairs of columns by their names; where these are not usual ones, both must hold texts."""
    usual, like = pairs_of(_flat(table))
    return usual + [pair for pair in like if all(_could_be_text(values_of(table, name)) for name in pair)]


def _could_be_text(values: Sequence[str]) -> bool:
    words = sum(len(value.split()) for value in values[:1000])
    return bool(values) and words >= 2 * len(values[:1000]) and not all(map(is_number, values))


def _task_column(table: Table, shape: Shape) -> str | None:
    """A column that names the task of each row."""
    name = by_name(table.found, TASK_NAMES)
    if name is None or name in (*shape.text, shape.label):
        return None
    counts = Counter(values_of(table, name))
    return name if 2 <= len(counts) <= _MOST_TASKS and min(counts.values()) >= _REPEATS else None
