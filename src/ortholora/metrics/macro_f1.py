"""Macro F1: the mean of the classes' F1 (scikit-learn's).

A class that is neither a target nor predicted is left out of the mean.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score

from ortholora.metrics.class_counts import ClassCounts, over_runs
from ortholora.metrics.f1 import of_each_class


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: int) -> float:
    """The metric of class indices."""
    return float(f1_score(targets, predictions, average="macro", zero_division=0))


def from_counts(counts: ClassCounts) -> np.ndarray:
    """The metric of one run from its counts by class, `[resamples]`."""
    seen = counts.targets + counts.predicted > 0
    return of_each_class(counts).sum(axis=0) / seen.sum(axis=0)


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: int, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return over_runs(from_counts, targets, predictions, num_labels, counts)
