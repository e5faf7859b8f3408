"""Pydantic's validation errors in the user's words: one message, every problem by its dotted key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ortholora.config.keys import sections_of
from ortholora.config.schema import Config
from ortholora.config.tasks.base import Task
from ortholora.config.tasks.union import KINDS
from ortholora.errors import UserError, did_you_mean, listing

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


@dataclass
class _Problem:
    """What is wrong with one key."""

    key: str
    expected: str
    found: str
    todo: str


def to_user_error(error: ValidationError, raw: Mapping[str, Any], where: str) -> UserError:
    """Translate a validation error.

    Args:
        error: What pydantic raised.
        raw: The mapping that was validated; gives the tasks' names.
        where: The file, for the first line of the message.

    Returns:
        One error that lists all problems.
    """
    details = error.errors(include_url=False)
    problems = _merge(_problem(one, raw) for one in details[:_LOOKED_AT])
    if len(problems) == 1:
        one = problems[0]
        return UserError(f"{where}: {one.key}", expected=one.expected, found=one.found, todo=one.todo)
    number = len(problems) + max(0, len(details) - _LOOKED_AT)
    lines = [f"  {p.key}: expected {p.expected}; found {p.found}; {p.todo}" for p in problems[:_LISTED]]
    if number > _LISTED:
        lines.append(f"  and {number - _LISTED} more")
    return UserError(
        "\n".join([f"{where}: {number} problems", *lines]),
        expected="keys and values as in docs/configuration.md",
        found=f"the {number} problems above" if number <= _LISTED else f"{number} problems, the first of them above",
        todo=f"correct {listing(p.key for p in problems)}",
    )


#: Problems that are put into words, and those of them that are listed: the rest shows when they are corrected.
_LOOKED_AT, _LISTED = 200, 20


def _merge(problems: Iterable[_Problem]) -> list[_Problem]:
    """Join the problems of one key: a field of two types reports one for each."""
    merged: dict[str, _Problem] = {}
    for problem in problems:
        known = merged.setdefault(problem.key, problem)
        if known is not problem and problem.expected not in known.expected:
            known.expected += f" or {problem.expected}"
    # A union's other branches report its field too, where one of them already named the key inside.
    return [p for p in merged.values() if not any(other.startswith(f"{p.key}.") for other in merged)]


def _problem(details: ErrorDetails, raw: Mapping[str, Any]) -> _Problem:
    key, section = _locate(details, raw)
    kind, value = details["type"], details["input"]
    if kind == "config":
        return _Problem(key, **details["ctx"])
    expected, found = _words(details), _show(value)
    todo = f"give `{key.rpartition('.')[2]}` such a value"
    last = str(details["loc"][-1]) if details["loc"] else ""
    if kind == "extra_forbidden" and issubclass(section, Task) and last in _KEYS_OF_TASKS:
        expected = f"keys of a {section.model_fields['kind'].default} task"
        found, todo = f"`{last}`", f"remove `{last}`, or correct `kind`"
    elif kind == "extra_forbidden":
        known = list(section.model_fields)
        expected = f"one of {listing(known, limit=30)}"
        found = f"the unknown key `{last}`"
        elsewhere = _KEYS_OF_TASKS if issubclass(section, Task) else ()
        todo = did_you_mean(last, known, did_you_mean(last, elsewhere, "remove it"))
    elif kind == "union_tag_invalid":
        expected, found = f"one of {listing(KINDS)}", _show(value["kind"])
        todo = did_you_mean(str(value["kind"]), KINDS, "use one of these")
    elif kind == "union_tag_not_found":
        expected = _PLAIN["model_type"]
    elif kind == "missing":
        description = section.model_fields[last].description or "a value"
        expected, found, todo = description.rstrip("."), "no such key", f"add `{last}:`"
    elif kind == "literal_error":
        options = str(details["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        todo = did_you_mean(str(value), options, "use one of these")
    elif kind in ("model_type", "model_attributes_type") and value is None:
        expected, found, todo = "keys below it", "nothing", "write its keys below, indented, or remove the line"
    return _Problem(key, expected, found, todo)


#: Keys of tasks of any kind.
_KEYS_OF_TASKS = frozenset(key for cls in KINDS.values() for key in cls.model_fields)

#: What pydantic's kinds of errors mean to somebody who writes YAML.
_PLAIN = {
    "string_type": "text (in quotes, where YAML would read a number, a date or yes/no)",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "list_type": "a list",
    "string_pattern_mismatch": "a name of letters, digits, `_`, `.` and `-`, which begins with a letter or a digit",
}


def _words(details: ErrorDetails) -> str:
    message = (
        details["msg"]
        .removeprefix("Value error, ")
        .removeprefix("Input should be ")
        .removeprefix("String should have ")
    )
    return _PLAIN.get(details["type"], message)


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        given = [key for key, entry in value.items() if entry is not None]
        return f"a section with the keys {listing(map(str, given), limit=20)}"
    if isinstance(value, BaseModel):
        return _show(value.model_dump(exclude_unset=True))
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _locate(details: ErrorDetails, raw: Mapping[str, Any]) -> tuple[str, type[BaseModel]]:
    """Return the dotted key of a problem, and the section in which its last part was looked up.

    Pydantic also puts the branch of a union into the location (`text.list[str]`, the kind of a task); those parts are
    no keys.
    """
    section: type[BaseModel] = Config
    inside: list[type[BaseModel]] = [Config]
    parts: list[str] = []
    loc = details["loc"]
    for position, part in enumerate(loc):
        if isinstance(part, int):
            parts.append(_task_name(raw, part) if parts == ["tasks"] else str(part))
        elif len(inside) > 1:
            inside = [KINDS[part]]
        elif inside and part in inside[0].model_fields:
            parts.append(part)
            section, inside = inside[0], sections_of(inside[0].model_fields[part].annotation)
        elif inside and details["type"] == "extra_forbidden" and position == len(loc) - 1:
            parts.append(part if len(part) <= 80 else f"{part[:77]}...")
            section = inside[0]
    if details["type"] == "union_tag_invalid":
        parts.append("kind")
    return ".".join(parts) or "the configuration as a whole", section


def _task_name(raw: Mapping[str, Any], index: int) -> str:
    tasks = raw.get("tasks")
    task = tasks[index] if isinstance(tasks, list) else None
    name = task.get("name") if isinstance(task, Mapping) else None
    return name if isinstance(name, str) else str(index)
