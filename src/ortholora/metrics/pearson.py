"""Pearson correlation (scipy's); 0 where the targets or the predictions are constant."""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr

from ortholora.metrics.spread import correlations, is_constant, unit_scale


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: None) -> float:
    """The metric of values."""
    targets, predictions = unit_scale(targets), unit_scale(predictions)
    if any(is_constant(values.mean(), values.var()) for values in (targets, predictions)):
        return 0.0
    return float(pearsonr(targets, predictions).statistic)


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: None, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return correlations(_centred, targets, predictions, counts)


def _centred(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values less their mean in each resample, `[rows, resamples]`; zero where they are constant.

    In two passes (mean first), which is stable.
    """
    values = unit_scale(values)
    total = counts.sum(axis=0)
    mean = values @ counts / total
    centred = values[:, None] - mean
    variance = np.einsum("rb,rb,rb->b", counts, centred, centred) / total
    centred[:, is_constant(mean, variance)] = 0.0
    return centred
