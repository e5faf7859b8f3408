"""F1 of the positive class, which is the second of two (scikit-learn's).

F1 of a class that is neither a target nor predicted is 0.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score

from ortholora.metrics.class_counts import ClassCounts, over_runs


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: int) -> float:
    """The metric of class indices."""
    return float(f1_score(targets, predictions, labels=[0, 1], pos_label=1, zero_division=0))


def of_each_class(counts: ClassCounts) -> np.ndarray:
    """F1 = 2 TP / (targets + predicted) of each class, `[classes, resamples]`."""
    seen = counts.targets + counts.predicted
    return 2 * counts.hits / np.where(seen > 0, seen, 1)


def from_counts(counts: ClassCounts) -> np.ndarray:
    """The metric of one run from its counts by class, `[resamples]`."""
    return of_each_class(counts)[1]


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: int, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return over_runs(from_counts, targets, predictions, num_labels, counts)
