"""What a model answers to a task's dev rows, and the metrics that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Compared:
    """What a model says to some rows of a task, beside what is right.

    Attributes:
        own: Class indices, or regression targets and values, where the model has them.
        losses: Tokens of each row's own answer, and its summed negative log-likelihood, where the model has them.
        written: Metric of generated answers → ones, and each row's score.
    """

    own: Pair | None
    losses: Pair | None
    written: dict[str, Pair]


def score(
    model: AdaptedModel,
    index: int,
    task: TaskConfig,
    rows: EncodedSplit,
    reading: Reading,
    share: slice = slice(None),
    gather: Gather = lambda values: values,
) -> Evaluation:
    """Let a model answer the rows of a task, and compute the metrics; see `compare` and `evaluation_of`."""
    return evaluation_of(task, model.specs[index].labels, [compare(model, index, task, rows, reading, share, gather)])


def compare(
    model: AdaptedModel,
    index: int,
    task: TaskConfig,
    rows: EncodedSplit,
    reading: Reading,
    share: slice = slice(None),
    gather: Gather = lambda values: values,
) -> Compared:
    """Let a model answer the rows of a task.

    Classes and values are compared where the model has them, and so is the likelihood of the rows' own answers;
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
    losses: Pair | None = None
    if found.predictions is not None:
        dtype = np.float64 if model.specs[index].labels is None else np.int64
        own = np.asarray(rows.targets, dtype=dtype), whole(found.predictions).astype(dtype)
    if found.losses is not None:
        losses = np.asarray(rows.weights, dtype=np.float64), whole(found.losses)
    written: dict[str, Pair] = {}
    for name in (name for name in fitting("answers") if METRICS[name].generates and found.written is not None):
        # Every rank has to agree, so the answers of all are asked about.
        unreadable = gather(np.asarray([float(not metrics.can_score(name, found.wanted))]))
        if name == task.metric or not unreadable.any():
            score_rows = METRICS[name].implementation().score_rows
            written[name] = np.ones(len(rows)), whole(score_rows(found.wanted, found.written))
    return Compared(own, losses, written)


def evaluation_of(task: TaskConfig, labels: Sequence[str] | None, parts: Sequence[Compared]) -> Evaluation:
    """Compute the metrics of what a model said to the rows of a task.

    Args:
        task: The task, with its metric.
        labels: Its classes, or its closed set of answers; None where there are none.
        parts: What was said, in the order of the rows; one part or more.
    """
    assert task.metric is not None
    metric, scores = METRICS[task.metric], dict[str, float]()
    own = _joined([part.own for part in parts])
    if own is not None:
        classes = None if labels is None else len(labels)
        if metric.compares != "answers":
            scores["main"] = metrics.compute(task.metric, *own, classes)
        scores |= metrics.details(*own, classes)
    by_row: dict[str, Pair] = {}
    losses = _joined([part.losses for part in parts])
    if losses is not None:
        scores["loss"] = float(losses[1].sum() / losses[0].sum())
        by_row |= {name: losses for name in fitting("answers") if not METRICS[name].generates}
    for name in parts[0].written:
        pair = _joined([part.written.get(name) for part in parts])
        by_row |= {} if pair is None else {name: pair}
    scores |= {name: metrics.compute(name, *weighted, None) for name, weighted in by_row.items()}
    if metric.compares == "answers":
        own, scores = by_row[task.metric], {"main": scores[task.metric], **scores}
    assert own is not None
    return Evaluation(*own, scores)


def _joined(pairs: Sequence[Pair | None]) -> Pair | None:
    """All of them as one; None where one is missing."""
    there = [pair for pair in pairs if pair is not None]
    if len(there) < len(pairs):
        return None
    first, second = zip(*there, strict=True)
    return np.concatenate(first), np.concatenate(second)
