"""Evaluate a saved run on its dev data, or on data elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.models.heads import HeadSpec
from ortholora.models.language import LanguageSpec
from ortholora.models.predictor import Predictor
from ortholora.trainers.scoring import evaluate_heads, evaluate_language


def evaluate_run(predictor: Predictor, tasks: Sequence[TaskData]) -> dict[str, dict[str, float]]:
    """Compute every metric that fits each task, on its dev rows.

    Args:
        predictor: The loaded run.
        tasks: The data, with the labels the run was trained on.

    Returns:
        Task → metric → value; the task's own metric also under `main`.

    Raises:
        UserError: The data has other tasks or other labels than the run.
    """
    return {task.name: _evaluate(predictor, task) for task in tasks}


def _evaluate(predictor: Predictor, task: TaskData) -> dict[str, float]:
    spec = _spec_of(predictor, task)
    if isinstance(spec, LanguageSpec):
        with predictor.precision():
            return evaluate_language(task.spec, spec, task.dev, predictor.asking).scores
    rows = predictor.predict(task.name, list(task.dev.texts))
    if spec.labels is not None:
        index = {label: i for i, label in enumerate(spec.labels)}
        predictions = np.asarray([index[str(row.label)] for row in rows])
    else:
        predictions = np.asarray([row.value for row in rows], dtype=np.float64)
    count = len(spec.labels) if spec.labels is not None else None
    return evaluate_heads(task.spec, task.dev.targets, predictions, count).scores


def _spec_of(predictor: Predictor, task: TaskData) -> HeadSpec | LanguageSpec:
    specs = {spec.name: spec for spec in predictor.card.tasks}
    found = specs.get(task.name)
    if found is None or found.labels != task.labels:
        raise UserError(
            f"The data of task {task.name!r} does not fit the run",
            expected=f"labels {list(found.labels or [])}" if found else f"one of the tasks {', '.join(specs)}",
            found=f"labels {list(task.labels or [])}" if found else f"task {task.name!r}",
            todo="give the data that the run was trained on, or set `labels` in its config.yaml",
        )
    return found
