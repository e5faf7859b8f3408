"""Deviations from the mean in resamples, and their cosine: what correlations are made of.

A correlation with constant predictions (or targets) is 0. A model that says the same for every row knows nothing about
the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Spread (standard deviation over root mean square) up to which values count as constant: float64 rounding.
_CONSTANT_SPREAD = 1e-11


def unit_scale(values: np.ndarray) -> np.ndarray:
    """Divide by the largest magnitude, `[rows]` → `[rows]` within -1 and 1; all zeros stay.

    Squares cannot overflow then, and a correlation does not see the scale.
    """
    largest = float(np.abs(values).max())
    return values / largest if largest > 0 else values


def is_constant(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Whether values with this mean and variance are the same but for rounding (arrays of any shape)."""
    return variance <= _CONSTANT_SPREAD**2 * (mean**2 + variance)


def correlations(
    deviations: Callable[[np.ndarray, np.ndarray], np.ndarray],
    targets: np.ndarray,
    predictions: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """Correlate the deviations of targets and predictions.

    Args:
        deviations: From values `[rows]` and counts to deviations from the mean of each resample, `[rows, resamples]`.
        targets: Regression targets, `[rows]`.
        predictions: Predicted values of each run, `[runs, rows]`.
        counts: How often each row was drawn, `[rows, resamples]`.

    Returns:
        `[runs, resamples]`, 0 where either has no spread.
    """
    wanted = deviations(targets.astype(np.float64), counts)
    found = (deviations(predicted, counts) for predicted in predictions.astype(np.float64))
    return np.stack([_cosine(wanted, deviation, counts) for deviation in found])


def _cosine(left: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weighted cosine of two `[rows, resamples]`: `[resamples]`."""
    weighted = counts * left
    product = np.einsum("rb,rb->b", weighted, right)
    norms = np.einsum("rb,rb->b", weighted, left) * np.einsum("rb,rb,rb->b", counts, right, right)
    ratio = product / np.sqrt(np.where(norms > 0, norms, 1))
    return np.where(norms > 0, np.clip(ratio, -1.0, 1.0), 0.0)
