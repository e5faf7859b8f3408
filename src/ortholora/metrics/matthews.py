"""Matthews correlation, for any number of classes: Gorodkin's R_K (2004), as in scikit-learn.

With only one class among the targets or among the predictions it is 0.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import matthews_corrcoef

from ortholora.metrics.class_counts import ClassCounts, over_runs


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: int) -> float:
    """The metric of class indices."""
    # scikit-learn warns when there is only one class; the answer is 0 by definition.
    one_class = np.ptp(targets) == 0 or np.ptp(predictions) == 0
    return 0.0 if one_class else float(matthews_corrcoef(targets, predictions))


def from_counts(counts: ClassCounts) -> np.ndarray:
    """The metric of one run from its counts by class, `[resamples]`."""
    hits, targets, predicted = counts.hits, counts.targets, counts.predicted
    total = targets.sum(axis=0)
    # Counts are whole numbers below 2^26 here, so the squares are exact and a zero is a true zero.
    covariance = hits.sum(axis=0) * total - (targets * predicted).sum(axis=0)
    spread = (total**2 - (targets**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: int, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return over_runs(from_counts, targets, predictions, num_labels, counts)
