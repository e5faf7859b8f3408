"""Spearman correlation (scipy's): the Pearson correlation of mid-ranks; 0 where targets or predictions are constant."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from ortholora.metrics.spread import correlations


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: None) -> float:
    """The metric of values."""
    if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(spearmanr(targets, predictions).statistic)


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: None, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return correlations(_centred_ranks, targets, predictions, counts)


def _centred_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mid-ranks among the drawn rows less their mean (n + 1) / 2, `[rows, resamples]`.

    The mid-rank of the rows with value v is (number drawn below v) + (number drawn equal + 1) / 2: one cumulative sum
    over the sorted distinct values.
    """
    distinct, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct)))
    equal = np.add.reduceat(counts[order], starts, axis=0)
    up_to = np.cumsum(equal, axis=0)
    # (below + (equal + 1) / 2) - (n + 1) / 2 with below = up_to - equal.
    return (up_to - (equal + up_to[-1]) / 2)[codes]
