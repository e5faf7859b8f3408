"""What a model must know of its tasks, from the tasks as they were read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ortholora.config.schema import Config
from ortholora.data.encoded import EncodedTask
from ortholora.data.task import TaskData
from ortholora.models.heads import HeadSpec
from ortholora.models.language import LanguageSpec
from ortholora.models.saving import ModelCard


def language_spec(data: TaskData) -> LanguageSpec:
    """What a language model needs to know of a task."""
    spec = data.spec
    assert spec.kind in ("completion", "chat")
    return LanguageSpec(data.name, spec.kind, data.labels, spec.metric, spec.max_new_tokens, spec.turns)


def head_spec(data: TaskData) -> HeadSpec:
    """The head a task needs."""
    spec = data.spec
    shift, scale = 0.0, 1.0
    if spec.kind == "regression":
        values = np.asarray(data.train.targets, dtype=np.float64)
        shift, scale = float(values.mean()), float(values.std())
    pair = isinstance(spec.text, list) and len(spec.text) == 2
    num_texts = len(data.train.texts[0]) if len(data.train) else 1 + pair
    assert spec.kind in ("classification", "regression")
    return HeadSpec(data.name, spec.kind, data.labels, shift, scale, spec.metric, num_texts)


def card_of(config: Config, tasks: Sequence[EncodedTask]) -> ModelCard:
    """What is saved beside a run's adapter."""
    folder = Path(config.backbone)
    return ModelCard(
        # A relative folder would be another one where the run is used.
        backbone=str(folder.absolute()) if folder.is_dir() else config.backbone,
        revision=config.revision,
        dtype=config.dtype,
        pooling=config.pooling,
        max_length=config.max_length,
        tasks=tuple((language_spec if task.data.spec.is_language else head_spec)(task.data) for task in tasks),  # type: ignore[arg-type]
    )
