"""The mean of Pearson and Spearman correlation, as GLUE reports it."""

from __future__ import annotations

import numpy as np

from ortholora.metrics import pearson, spearman


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: None) -> float:
    """The metric of values."""
    return (pearson.value(targets, predictions, None) + spearman.value(targets, predictions, None)) / 2


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: None, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    both = [metric.resampled(targets, predictions, None, counts) for metric in (pearson, spearman)]
    return (both[0] + both[1]) / 2
