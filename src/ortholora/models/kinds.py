"""The kinds of task: the one place that decides which model a task needs, and what has to be known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ortholora.data.encoded import EncodedTask
from ortholora.data.task import TaskData
from ortholora.models.adapted import AdaptedModel
from ortholora.models.card import ModelCard
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


def card_from_json(data: dict[str, Any]) -> ModelCard:
    """Inverse of `ModelCard.to_json`.

    Raises:
        KeyError: A task is of a kind that is not known.
    """
    fields = {key: value for key, value in data.items() if key in ModelCard.__dataclass_fields__}
    tasks = tuple(KINDS[task["kind"]].spec.from_json(task) for task in data["tasks"])
    return ModelCard(**{**fields, "tasks": tasks})
