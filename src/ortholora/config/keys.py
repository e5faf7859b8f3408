"""Dotted keys of the configuration: what they may be, and setting one in the raw mapping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from ortholora.config.schema import Config
from ortholora.config.tasks.union import KINDS, kind_of
from ortholora.errors import UserError, did_you_mean, listing

#: A section, or the classes that an entry may have one of: their keys are looked up in this order.
Models = Sequence[type[BaseModel]]


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections a field may hold: one (`LoraSection`, `HubSource | None`), one a kind of task, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for choice in get_args(annotation) for section in sections_of(choice)]


def is_open(annotation: Any) -> bool:
    """Tell whether a field takes keys of the user's choice (`lora.options`)."""
    return get_origin(annotation) is dict


def dotted_keys(models: Models, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a section, `tasks` without its members."""
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        yield f"{prefix}{name}"
        yield from dotted_keys(_below_of(models, name), f"{prefix}{name}.")


def _annotation(models: Models, name: str) -> Any:
    return next((model.model_fields[name].annotation for model in models if name in model.model_fields), None)


def _below_of(models: Models, name: str) -> Models:
    """The section under a key; none for a plain value and for a list, whose entries are not set by key."""
    annotation = _annotation(models, name)
    return [] if get_origin(annotation) is list else sections_of(annotation)


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in the raw mapping of a configuration, in place.

    Args:
        raw: The mapping as read from YAML.
        key: For example `training.steps`, `tasks.cola.weight`, `tasks.0.weight` or `lora.options.bias`.
        value: The new value; it is checked later, with all the others.

    Raises:
        UserError: The key is unknown; the message names the nearest one that exists.
    """
    head, _, rest = key.partition(".")
    if head == "tasks" and rest:
        node, name, rest = _find_task(raw, key, rest)
        kinds = _kinds(node)
        if not rest:
            raise _unknown(key, f"tasks.{name}.", kinds)
        _set_in(node, kinds, rest, value, prefix=f"tasks.{name}.")
    else:
        _set_in(raw, [Config], key, value, prefix="")


def _kinds(task: dict[str, Any]) -> Models:
    """The task's own class and then those of the other kinds: a later override may change `kind`."""
    own = kind_of(task)
    return [*([own] if own else []), *(cls for cls in KINDS.values() if cls is not own)]


def _set_in(node: dict[str, Any], models: Models, key: str, value: Any, prefix: str) -> None:
    head, _, rest = key.partition(".")
    annotation, section = _annotation(models, head), _below_of(models, head)
    if annotation is None:
        raise _unknown(prefix + key, prefix, models)
    if not rest:
        node[head] = value
    elif section:
        _set_in(_below(node, head, prefix), section, rest, value, prefix=f"{prefix}{head}.")
    elif is_open(annotation):
        _below(node, head, prefix)[rest] = value
    else:
        raise UserError(
            f"--set {prefix}{key}: `{prefix}{head}` has no keys below it",
            expected=f"a value for the whole of `{prefix}{head}`",
            found=f"the key `{rest}` below it",
            todo=f"set it whole, as in --set {prefix}{head}=VALUE",
        )


def _below(node: dict[str, Any], name: str, prefix: str) -> dict[str, Any]:
    """Return the mapping under `name`, made when it is not there yet."""
    if node.get(name) is None:
        node[name] = {}
    below = node[name]
    if not isinstance(below, dict):
        raise UserError(
            f"`{prefix}{name}` cannot be changed key by key",
            expected="a section with keys",
            found=repr(below),
            todo=f"write `{prefix}{name}` as a section in the configuration file",
        )
    return below


def _find_task(raw: dict[str, Any], key: str, rest: str) -> tuple[dict[str, Any], str, str]:
    """Return the task that `rest` starts with, how it was called, and what follows.

    A task's name may hold dots (`v1.1`), so the longest name that fits is taken.
    """
    entries = raw.get("tasks")
    tasks = [task for task in entries if isinstance(task, dict)] if isinstance(entries, list) else []
    called = {str(index): task for index, task in enumerate(tasks)}
    called |= {str(task["name"]): task for task in tasks if "name" in task}
    fitting = [name for name in called if rest == name or rest.startswith(f"{name}.")]
    if not fitting:
        names = [str(task.get("name")) for task in tasks]
        wrong = rest.partition(".")[0]
        raise UserError(
            f"--set {key}: unknown task",
            expected=f"one of the tasks {listing(names)}, or an index",
            found=f"`{wrong}`",
            todo=did_you_mean(wrong, names, "name the task as the configuration does"),
        )
    name = max(fitting, key=len)
    task, left = called[name], rest[len(name) + 1 :]
    value = left.partition(".")[0]
    if task.get("split_by") and left and _annotation(_kinds(task), value) is None:
        raise UserError(
            f"--set {key}: a task that `split_by` makes has no settings of its own",
            expected=f"a key of the entry `{name}`, for all of its tasks",
            found=f"`{left}`",
            todo=f"give the task an entry in the file, with `split_by: {task['split_by']}` and `only: {value}`",
        )
    return task, name, left


def _unknown(key: str, prefix: str, models: Models) -> UserError:
    """Return the error for a key that does not exist, with the nearest that does."""
    known = list(dotted_keys(models, prefix))
    last = key.rpartition(".")[2]
    # `learning_rate` alone is most likely `training.learning_rate`, however different the whole looks.
    elsewhere = [other for other in known if other.rpartition(".")[2] == last]
    todo = f"did you mean `{elsewhere[0]}`?" if elsewhere else did_you_mean(key, known, "see docs/configuration.md")
    return UserError(
        f"--set {key}: unknown key",
        expected=f"a key that exists, here {listing(models[0].model_fields, limit=30)}",
        found=f"`{key}`",
        todo=todo,
    )
