"""Inner products of task gradients without their noise, out of micro-batches that share no rows.

The gradient of few rows is mostly noise, and its noise makes every length too long and every cosine too small. But the
noise of two micro-batches is independent: `E⟨g_a^i, g_b^j⟩ = ⟨∇L_a, ∇L_b⟩` for i ≠ j. The mean over all pairs of
different micro-batches is the estimate with the least variance of those that take products across parts of the rows
(a U-statistic; two halves are the case M = 2). How sure it is says the jackknife: every micro-batch left out once
(Arvesen, *Jackknifing U-statistics*, 1969). Where there is nothing but noise it errs on the side of caution.

All functions take a Gram `[N, M, T, M, T]`: inner products in N blocks of the gradients of M micro-batches and T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

#: Two-sided certainty of every interval.
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty; all arrays of one shape.

    Attributes:
        value: The figure; NaN where it is not determined.
        error: Its standard error.
        low: Lower end of the 95 % interval (Student's with M - 1 degrees of freedom).
        high: Its upper end.
        p: Two-sided probability of a figure as far from zero, were it zero; 1 where nothing is known.
    """

    value: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def cross_products(gram: np.ndarray) -> np.ndarray:
    """`Σ_{i≠j} ⟨g_a^i, g_b^j⟩ / M (M - 1)`, `[N, T, T]`."""
    count = gram.shape[1]
    return (gram.sum((1, 3)) - np.einsum("nkakb->nab", gram)) / (count * (count - 1))


def left_out(gram: np.ndarray) -> np.ndarray:
    """`cross_products` without each of the micro-batches, `[M, N, T, T]`."""
    count = gram.shape[1]
    # ⟨g_a^k, g_b^j⟩ summed over j ≠ k; its mirror image is the sum over pairs in which k is the second.
    own = gram.sum(3) - np.einsum("nkakb->nkab", gram)
    rest = own.sum(1, keepdims=True) - own - own.swapaxes(2, 3)
    return rest.swapaxes(0, 1) / ((count - 1) * (count - 2))


def jackknife(gram: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Estimate a figure that is a function of the products.

    Args:
        gram: `[N, M, T, M, T]`.
        figure: Products `[..., T, T]` → the figure; NaN where they do not determine it.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value, parts = figure(cross_products(gram)), figure(left_out(gram))
    count = len(parts)
    error = np.sqrt((count - 1) / count * ((parts - parts.mean(0)) ** 2).sum(0))
    return estimate(value, error, count - 1)


def estimate(value: np.ndarray, error: np.ndarray, freedom: int) -> Estimate:
    """Add the interval and the probability to a figure and its standard error."""
    reach = float(student.ppf(0.5 + LEVEL / 2, freedom)) * error
    known = np.isfinite(value) & (error > 0)
    ratio = np.divide(np.abs(value), error, out=np.zeros_like(value), where=known)
    p = np.where(known, 2 * student.sf(ratio, freedom), 1.0)
    return Estimate(value, error, value - reach, value + reach, p)


def over_groups(values: np.ndarray) -> Estimate:
    """The mean of independent values `[M, ...]`, with its uncertainty."""
    return estimate(values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values)), len(values) - 1)
