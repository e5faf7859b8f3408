"""Accuracy: the share of rows whose class is right (scikit-learn's)."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score

from ortholora.metrics.class_counts import ClassCounts, over_runs


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: int) -> float:
    """The metric of class indices."""
    return float(accuracy_score(targets, predictions))


def from_counts(counts: ClassCounts) -> np.ndarray:
    """The metric of one run from its counts by class, `[resamples]`."""
    return counts.hits.sum(axis=0) / counts.targets.sum(axis=0)


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: int, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return over_runs(from_counts, targets, predictions, num_labels, counts)
