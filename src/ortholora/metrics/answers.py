"""The mean of the rows' scores, weighted: what metrics of written answers are made of."""

from __future__ import annotations

import numpy as np


def mean_score(weights: np.ndarray, scores: np.ndarray) -> float:
    """The mean of scores that are multiplied by their weights already, `[rows]` and `[rows]`."""
    return float(scores.sum() / weights.sum())


def resampled_mean(weights: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The same of `[rows]` and `[runs, rows]` in resamples: `[runs, resamples]`."""
    return (scores @ counts) / (weights @ counts)
