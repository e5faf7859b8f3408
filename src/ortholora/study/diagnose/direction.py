"""Do two tasks pull the same way? Cosines of their gradients without noise, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control

from ortholora.study.diagnose.products import Estimate, jackknife

#: The share of blocks called sure that may be called so wrongly.
FALSE = 0.05


@dataclass(frozen=True)
class Direction:
    """How the tasks lie to each other in N blocks.

    Attributes:
        squares: Squared length of every task's gradient, `[N, T]`.
        determined: Whether the rows determine the length: its interval lies above zero. `[N, T]`
        products: Inner products, `[N, T, T]`. Their sign is known more often than a cosine is.
        cosines: NaN where a length is not determined, `[N, T, T]`.
    """

    squares: Estimate
    determined: np.ndarray
    products: Estimate
    cosines: Estimate


def direction(gram: np.ndarray) -> Direction:
    """Judge the directions of a Gram `[N, M, T, M, T]`; see `products.py`."""
    squares = jackknife(gram, _squares)
    determined = squares.low > 0
    products = jackknife(gram, lambda products: products)
    cosines = jackknife(gram, _cosines)
    both = determined[:, :, None] & determined[:, None, :] & np.isfinite(cosines.error)
    hidden = {name: np.where(both, getattr(cosines, name), np.nan) for name in ("value", "error", "low", "high")}
    clipped = {name: np.clip(values, -1, 1) if name != "error" else values for name, values in hidden.items()}
    return Direction(squares, determined, products, Estimate(**clipped, p=np.where(both, cosines.p, 1.0)))


def surely(p: np.ndarray) -> np.ndarray:
    """Which of many signs are sure, when at most `FALSE` of those called so may be wrong (Benjamini and Hochberg).

    Args:
        p: Probability of each were there nothing, any shape; NaN where none was judged.
    """
    sure = np.zeros(p.shape, dtype=bool)
    judged = np.isfinite(p)
    if judged.any():
        sure[judged] = false_discovery_control(p[judged], method="bh") <= FALSE
    return sure


def ratio(gram: np.ndarray) -> Estimate:
    """Natural logarithm of the ratio of two tasks' lengths, `[N, T, T]`: row over column."""
    return jackknife(gram, _log_ratio)


def _squares(products: np.ndarray) -> np.ndarray:
    return np.diagonal(products, axis1=-2, axis2=-1)


def _lengths(products: np.ndarray) -> np.ndarray:
    squares = _squares(products)
    return np.sqrt(np.where(squares > 0, squares, np.nan))


def _cosines(products: np.ndarray) -> np.ndarray:
    lengths = _lengths(products)
    return products / (lengths[..., :, None] * lengths[..., None, :])


def _log_ratio(products: np.ndarray) -> np.ndarray:
    logs = np.log(_lengths(products))
    return logs[..., :, None] - logs[..., None, :]
