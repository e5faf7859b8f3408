"""Evaluate a saved run on its dev or test data, on data elsewhere, or on a file of one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.encoded import EncodedSplit
from ortholora.data.labelled import LabelledFile
from ortholora.data.task import Split, TaskData
from ortholora.errors import UserError
from ortholora.metrics.compute import row_interval
from ortholora.metrics.table import METRICS
from ortholora.models import predictor as predictors
from ortholora.models.kinds import model_of
from ortholora.models.predictor import Predictor
from ortholora.models.spec import TaskSpec
from ortholora.runs.progress import RowProgress, Stopped
from ortholora.trainers.scoring import Compared, Evaluation, compare, evaluation_of, score


@dataclass(frozen=True)
class Scored:
    """How good a run is at a task.

    Attributes:
        scores: Every metric that fits the task, by name; the task's own also as `main`.
        interval: 95 % bootstrap interval over the rows of the task's own metric.
        rows: Rows that were scored.
        left_out: Bad rows that were not (`bad_rows: drop`).
    """

    scores: dict[str, float]
    interval: list[float]
    rows: int
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.scores, "interval": self.interval, "rows": self.rows, "left_out": self.left_out}


def evaluate_run(predictor: Predictor, tasks: Sequence[TaskData], resamples: int) -> dict[str, Scored]:
    """Compute every metric that fits each task, on its test rows where it has some, else on its dev rows.

    Args:
        predictor: The loaded run.
        tasks: The data, with the labels the run was trained on.
        resamples: Bootstrap resamples for the intervals.

    Returns:
        Task → its scores.

    Raises:
        UserError: The data has other tasks or other labels than the run.
    """
    return {task.name: _evaluate(predictor, task, resamples) for task in tasks}


def evaluate_file(run: Path, file: LabelledFile, resamples: int, progress: RowProgress) -> Scored:
    """Compute every metric that fits a task on the rows of a file, of which a window at a time is in memory.

    Args:
        run: The run's folder.
        file: The rows.
        resamples: Bootstrap resamples for the interval.
        progress: What the rows are reported to.

    Raises:
        Stopped: On request, after a window.
        UserError: The file cannot be read, has no answers or unknown ones, or its rows make no sense.
    """
    counted = file.check()
    predictor = predictors.load(run)
    window = model_of(predictor.card).window
    if file.spec.form == "chats":  # a template may refuse a row: before the work, too
        for split in file.windows(window):
            _encode(predictor, file, split)
    progress.start(file.spec.name, counted.rows, 0)
    parts: list[Compared] = []
    done = 0
    for split in file.windows(window):
        parts.append(_compare(predictor, file, split))
        done += len(split)
        progress.step(done)
        if progress.stop_requested and done < counted.rows:
            raise Stopped(f"{file.spec.name}, after {done:,} of {counted.rows:,} rows")
    found = evaluation_of(file.spec, file.labels, parts)
    return _scored(file.spec, file.labels, found, resamples, counted.left_out)


@torch.inference_mode()
def _compare(predictor: Predictor, file: LabelledFile, split: Split) -> Compared:
    rows = _encode(predictor, file, split)
    with predictor.precision():
        return compare(predictor.model, predictor.card.index_of(file.spec.name), file.spec, rows, predictor.reading())


def _encode(predictor: Predictor, file: LabelledFile, split: Split) -> EncodedSplit:
    card = predictor.card
    return card.tasks[card.index_of(file.spec.name)].encode(split, predictor.tokenizer, card.max_length)


@torch.inference_mode()
def _evaluate(predictor: Predictor, task: TaskData, resamples: int) -> Scored:
    spec = _spec_of(predictor, task)
    rows = spec.encode(task.scored, predictor.tokenizer, predictor.card.max_length)
    index = predictor.card.index_of(task.name)
    with predictor.precision():
        found = score(predictor.model, index, task.spec, rows, predictor.reading())
    return _scored(task.spec, task.labels, found, resamples)


def _scored(
    task: TaskConfig, labels: Sequence[str] | None, found: Evaluation, resamples: int, left_out: int = 0
) -> Scored:
    assert task.metric is not None
    classes = None if labels is None or METRICS[task.metric].compares == "answers" else len(labels)
    interval = row_interval(task.metric, found.targets, found.predictions, classes, resamples)
    return Scored(found.scores, interval, len(found.targets), left_out)


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
