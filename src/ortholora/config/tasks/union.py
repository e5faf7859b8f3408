"""All kinds of task: the union that `kind` decides. A new kind is a file beside this one and a line in `_AnyTask`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Discriminator, Tag

from ortholora.config.later import without_later
from ortholora.config.tasks.base import Task
from ortholora.config.tasks.chat import ChatTask
from ortholora.config.tasks.classification import ClassificationTask
from ortholora.config.tasks.completion import CompletionTask
from ortholora.config.tasks.regression import RegressionTask

_AnyTask = (
    Annotated[ClassificationTask, Tag("classification")]  # the first is the kind of a task that names none
    | Annotated[RegressionTask, Tag("regression")]
    | Annotated[CompletionTask, Tag("completion")]
    | Annotated[ChatTask, Tag("chat")]
)

#: The classes of task by their kind.
KINDS: dict[str, type[Task]] = {tag.tag: cls for cls, tag in map(get_args, get_args(_AnyTask))}
_DEFAULT_KIND = next(iter(KINDS))

#: Settings that every task had, whatever its kind, before each kind had its own: saved configurations and fingerprints
#: hold them. Nothing is added here.
_ONCE_OF_ALL: dict[str, Any] = {
    "text": "text",
    "label": "label",
    "prompt": "prompt",
    "completion": "completion",
    "messages": "messages",
    "turns": "all",
    "labels": None,
    "max_new_tokens": 64,
}


def kind_of(raw: Any) -> type[Task] | None:
    """The class of a task as read from YAML; None for a kind that does not exist."""
    kind = raw.get("kind", _DEFAULT_KIND)
    return KINDS.get(kind) if isinstance(kind, str) else None


def recorded(task: Task) -> dict[str, Any]:
    """A task's settings as results and fingerprints hold them, so that those of earlier versions stay comparable."""
    return without_later("tasks", _ONCE_OF_ALL | task.model_dump(mode="json"))


def _prepare(raw: Any) -> Any:
    """Name the kind, and leave out what earlier versions wrote of other kinds (always the default)."""
    cls = kind_of(raw) if isinstance(raw, Mapping) else None
    if cls is None:
        return raw
    idle = {
        key
        for key, default in _ONCE_OF_ALL.items()
        if key in raw and key not in cls.model_fields and raw[key] == default
    }
    return {"kind": _DEFAULT_KIND, **{key: value for key, value in raw.items() if key not in idle}}


def _tag(raw: Any) -> str | None:
    """The kind of a task, whatever stands there; None for what is no task at all."""
    if isinstance(raw, Task):
        return str(raw.model_dump(include={"kind"})["kind"])
    return str(raw.get("kind")) if isinstance(raw, Mapping) else None


#: A task of any kind.
TaskConfig = Annotated[Annotated[_AnyTask, Discriminator(_tag)], BeforeValidator(_prepare)]
