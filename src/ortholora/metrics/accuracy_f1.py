"""The mean of accuracy and F1, as GLUE reports it."""

from __future__ import annotations

import numpy as np

from ortholora.metrics import accuracy, f1
from ortholora.metrics.class_counts import ClassCounts, over_runs


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: int) -> float:
    """The metric of class indices."""
    return (accuracy.value(targets, predictions, num_labels) + f1.value(targets, predictions, num_labels)) / 2


def from_counts(counts: ClassCounts) -> np.ndarray:
    """The metric of one run from its counts by class, `[resamples]`."""
    return (accuracy.from_counts(counts) + f1.from_counts(counts)) / 2


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: int, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return over_runs(from_counts, targets, predictions, num_labels, counts)
