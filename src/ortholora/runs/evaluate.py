"""Evaluate a saved run on its dev or test data, or on data elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.models.predictor import Predictor
from ortholora.models.spec import TaskSpec
from ortholora.trainers.scoring import score


def evaluate_run(predictor: Predictor, tasks: Sequence[TaskData]) -> dict[str, dict[str, float]]:
    """Compute every metric that fits each task, on its test rows where it has some, else on its dev rows.

    Args:
        predictor: The loaded run.
        tasks: The data, with the labels the run was trained on.

    Returns:
        Task → metric → value; the task's own metric also under `main`.

    Raises:
        UserError: The data has other tasks or other labels than the run.
    """
    return {task.name: _evaluate(predictor, task) for task in tasks}


@torch.inference_mode()
def _evaluate(predictor: Predictor, task: TaskData) -> dict[str, float]:
    spec = _spec_of(predictor, task)
    rows = spec.encode(task.scored, predictor.tokenizer, predictor.card.max_length)
    index = predictor.card.index_of(task.name)
    with predictor.precision():
        return score(predictor.model, index, task.spec, rows, predictor.reading()).scores


def _spec_of(predictor: Predictor, task: TaskData) -> TaskSpec:
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
