"""Exact match: the share of answers that are the same but for spaces at the ends and between words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ortholora.metrics.answers import mean_score, resampled_mean


def check(wanted: Sequence[str]) -> None:
    """Any text can be compared."""


def score_rows(wanted: Sequence[str], written: Sequence[str]) -> np.ndarray:
    """1 where the answers are the same, else 0, `[rows]`."""
    pairs = zip(wanted, written, strict=True)
    return np.asarray([float(right.split() == answer.split()) for right, answer in pairs])


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: None) -> float:
    """The metric of rows' weights and weighted scores."""
    return mean_score(targets, predictions)


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: None, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return resampled_mean(targets, predictions, counts)
