"""Inverse perplexity: exp(−loss), the (geometric) mean probability of a target token. It needs no generated answer."""

from __future__ import annotations

import numpy as np

from ortholora.metrics.answers import mean_score, resampled_mean


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: None) -> float:
    """The metric of rows' target tokens and summed negative log-likelihoods."""
    return float(np.exp(-mean_score(targets, predictions)))


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: None, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return np.exp(-resampled_mean(targets, predictions, counts))
