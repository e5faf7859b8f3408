"""What a model answers to a task's dev rows, and the metrics that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.encoded import EncodedSplit
from ortholora.metrics import compute as metrics
from ortholora.metrics.table import METRICS, fitting
from ortholora.models.adapted import AdaptedModel, Reading

#: Adds up what the processes found, each for its share of the rows; the identity in one process.
Gather = Callable[[np.ndarray], np.ndarray]

#: Targets and predictions; or the weight of each row's score, and the score times its weight. `[rows]` both.
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """What a model says to a task's rows.

    Attributes:
        targets: Class indices, regression targets, or the weight of each row's score, `[rows]`.
        predictions: Class indices, values, or each row's score times its weight, `[rows]`.
        scores: Every metric that fits the task, by name; the task's own also as `main`.
    """

    targets: np.ndarray
    predictions: np.ndarray
    scores: dict[str, float]


def score(
    model: AdaptedModel,
    index: int,
    task: TaskConfig,
    rows: EncodedSplit,
    reading: Reading,
    share: slice = slice(None),
    gather: Gather = lambda values: values,
) -> Evaluation:
    """Let a model answer the rows of a task, and measure the answers.

    Classes and values are measured where the model has them, and so is the likelihood of the rows' own answers;
    answers are generated only for the metrics that need them.

    Args:
        model: The model, in evaluation mode.
        index: Id of the task.
        task: The task, with its metric.
        rows: The rows.
        reading: How they come into a forward.
        share: The rows that this process asks for.
        gather: Puts the shares together.
    """
    assert task.metric is not None
    metric = METRICS[task.metric]
    found = model.answer(index, rows.take(share), reading, write=metric.generates)

    def whole(values: Any) -> np.ndarray:
        result = np.zeros(len(rows))
        result[share] = values
        return gather(result)

    own: Pair | None = None
    scores: dict[str, float] = {}
    if found.predictions is not None:
        labels = model.specs[index].labels
        dtype, classes = (np.float64, None) if labels is None else (np.int64, len(labels))
        own = np.asarray(rows.targets, dtype=dtype), whole(found.predictions).astype(dtype)
        if metric.compares != "answers":
            scores["main"] = metrics.compute(task.metric, *own, classes)
        scores |= metrics.details(*own, classes)
    by_row: dict[str, Pair] = {}
    if found.losses is not None:
        tokens, losses = np.asarray(rows.weights, dtype=np.float64), whole(found.losses)
        scores["loss"] = float(losses.sum() / tokens.sum())
        by_row |= {name: (tokens, losses) for name in fitting("answers") if not METRICS[name].generates}
    if found.written is not None:
        ones = np.ones(len(rows))
        for name in (name for name in fitting("answers") if METRICS[name].generates):
            # Every rank has to agree, so the answers of all are asked about.
            unreadable = gather(np.asarray([float(not metrics.can_score(name, found.wanted))]))
            if name == task.metric or not unreadable.any():
                score_rows = METRICS[name].implementation().score_rows
                by_row[name] = ones, whole(score_rows(found.wanted, found.written))
    scores |= {name: metrics.compute(name, *weighted, None) for name, weighted in by_row.items()}
    if metric.compares == "answers":
        own, scores = by_row[task.metric], {"main": scores[task.metric], **scores}
    assert own is not None
    return Evaluation(*own, scores)
