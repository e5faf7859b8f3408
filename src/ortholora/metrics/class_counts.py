"""How often each class was right, wanted and predicted in resamples: what metrics of classes are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class ClassCounts:
    """Drawn rows of one run by class, each `[classes, resamples]`.

    Attributes:
        hits: Rows of the class that were predicted as such.
        targets: Rows of the class.
        predicted: Rows that were predicted as the class.
    """

    hits: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray


def over_runs(
    metric: Callable[[ClassCounts], np.ndarray],
    targets: np.ndarray,
    predictions: np.ndarray,
    num_labels: int,
    counts: np.ndarray,
) -> np.ndarray:
    """Compute a metric `counts of one run -> [resamples]` for every run.

    Args:
        metric: The metric from the counts by class.
        targets: Class indices, `[rows]`.
        predictions: Predicted class indices of each run, `[runs, rows]`.
        num_labels: Number of classes.
        counts: How often each row was drawn, `[rows, resamples]`.

    Returns:
        `[runs, resamples]`.
    """
    drawn = _per_class(targets, num_labels, None, counts)
    out = np.empty((len(predictions), counts.shape[1]))
    for run, predicted in enumerate(predictions):
        hits = _per_class(targets, num_labels, predicted == targets, counts)
        out[run] = metric(ClassCounts(hits, drawn, _per_class(predicted, num_labels, None, counts)))
    return out


def _per_class(classes: np.ndarray, num_labels: int, keep: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """Number of drawn rows of each class, among those to keep: a product of an indicator matrix with the counts."""
    rows = np.arange(len(classes)) if keep is None else np.flatnonzero(keep)
    indicator = sparse.csr_array(
        (np.ones(len(rows)), (classes[rows].astype(np.int64), rows)), shape=(num_labels, len(classes))
    )
    return indicator @ counts
