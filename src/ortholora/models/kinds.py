"""The kinds of task: the one place that decides which model a task needs, and what has to be known of it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, Union, get_type_hints

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, create_model

from ortholora.config.stored import Name, Stored
from ortholora.data.encoded import EncodedTask
from ortholora.data.task import TaskData
from ortholora.models.adapted import AdaptedModel
from ortholora.models.card import FORMAT, ModelCard
from ortholora.models.heads import HeadSpec
from ortholora.models.language import LanguageModel
from ortholora.models.language_spec import ChatSpec, CompletionSpec
from ortholora.models.multitask import MultiTaskModel
from ortholora.models.spec import TaskSpec


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        spec: What is known of such a task.
        model: The model that answers it; the tasks of a run have one in common.
    """

    spec: type[TaskSpec]
    model: type[AdaptedModel]


#: The configuration's `kind` → the kind. A new one is a line here, and a subclass of `TaskSpec` in a file of its own.
KINDS: dict[str, Kind] = {
    "classification": Kind(HeadSpec, MultiTaskModel),
    "regression": Kind(HeadSpec, MultiTaskModel),
    "completion": Kind(CompletionSpec, LanguageModel),
    "chat": Kind(ChatSpec, LanguageModel),
}


def spec_of(task: TaskData) -> TaskSpec:
    """What a model needs to know of a task."""
    return KINDS[task.spec.kind].spec.of(task)


def model_of(card: ModelCard) -> type[AdaptedModel]:
    """The model that answers the tasks of a card."""
    return KINDS[card.tasks[0].kind].model


def encode_task(task: TaskData, tokenizer: Any, max_length: int) -> EncodedTask:
    """Tokenise all splits of a task."""
    spec = spec_of(task)
    splits = [task.train, task.dev, *([] if task.test is None else [task.test])]
    return EncodedTask(task, *(spec.encode(split, tokenizer, max_length) for split in splits))


def card_file() -> TypeAdapter[Any]:
    """What the file of `ModelCard.to_json` must hold: keys of the card and of its tasks, with values of their types."""
    forms = tuple(Annotated[_stored(kind.spec, _StoredTask), Tag(name)] for name, kind in KINDS.items())
    task: Any = Annotated[Union[forms], _KIND]  # noqa: UP007 - made of a table
    tasks = Annotated[tuple[task, ...], Field(min_length=1)]
    return TypeAdapter(_stored(ModelCard, Stored, format=(Literal[FORMAT], ...), tasks=(tasks, ...)))


def card_from_file(content: Any) -> ModelCard:
    """The card out of what `card_file` read.

    Raises:
        ValueError: Its tasks do not go together.
    """
    tasks = tuple(KINDS[task.kind].spec(**dict(task)) for task in content.tasks)
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError("two tasks of one name")
    if len({KINDS[task.kind].model for task in tasks}) > 1:
        raise ValueError("tasks of an encoder and of a language model")
    for task in tasks:
        task.check()
    return ModelCard(**{**{key: value for key, value in content if key != "format"}, "tasks": tasks})


#: Where not every value of a field's type will do. Not in the dataclasses, which are of use without pydantic.
_STRICTER: dict[str, Any] = {
    "backbone": Name,
    "revision": Name | None,
    "name": Name,
    "max_length": Annotated[int, Field(gt=0)],
    "labels": Annotated[tuple[str, ...], Field(min_length=2)] | None,
    "scale": Annotated[float, Field(gt=0)],
    "num_texts": Annotated[int, Field(ge=1, le=2)],
    "max_new_tokens": Annotated[int, Field(gt=0)],
}


class _StoredTask(Stored):
    """A key that is none of a task's is damage (a name that lost a letter), not something to pass over."""

    model_config = ConfigDict(extra="forbid")


def _stored(cls: Any, base: type[Stored], **more: Any) -> type[Stored]:
    """A dataclass as a file holds it."""
    hints = get_type_hints(cls, include_extras=True) | {
        name: stricter for name, stricter in _STRICTER.items() if name in cls.__dataclass_fields__
    }
    needed = getattr(cls, "needed", ())
    keys: dict[str, Any] = {
        entry.name: (hints[entry.name], ... if entry.default is MISSING or entry.name in needed else entry.default)
        for entry in fields(cls)
    }
    return create_model(cls.__name__, __base__=base, **{**more, **keys, **more})


_KIND = Discriminator(
    lambda raw: kind if isinstance(raw, dict) and (kind := str(raw.get("kind"))) in KINDS else None,
    custom_error_type="kind",
    custom_error_message="a task with a `kind` among " + ", ".join(KINDS),
)
