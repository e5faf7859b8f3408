"""How noisy the gradient of a step is, and how many rows it takes to see a conflict's sign."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from ortholora.study.diagnose.products import cross_products

#: How often the sign of a step is to be right.
OFTEN = 0.9


def noise_per_row(gram: np.ndarray, rows: int) -> np.ndarray:
    """`tr Σ`: the mean squared length of one row's deviation from the gradient, `[N, T]`.

    Over the gradient's squared length it is the number of rows whose mean is as much noise as signal (the simple noise
    scale of McCandlish et al., *An Empirical Model of Large-Batch Training*, 2018, arXiv 1812.06162, equation 2.9).

    Args:
        gram: `[N, M, T, M, T]`; see `products.py`.
        rows: Rows of a task in each micro-batch.
    """
    own = np.einsum("nkaka->na", gram) / gram.shape[1]
    return np.maximum(0.0, rows * (own - np.diagonal(cross_products(gram), axis1=1, axis2=2)))


@dataclass(frozen=True)
class Spread:
    """How `⟨g_a, g_b⟩` of B rows each is spread: variance `one / B + two / B²`, all `[N, T, T]`.

    Attributes:
        mean: Its mean, which no number of rows changes.
        one: `∇L_aᵀ Σ_b ∇L_a + ∇L_bᵀ Σ_a ∇L_b`.
        two: `tr(Σ_a Σ_b)`.
    """

    mean: np.ndarray
    one: np.ndarray
    two: np.ndarray

    def right(self, rows: float) -> np.ndarray:
        """How often a step with so many rows of each task shows the right sign (normal approximation)."""
        spread = np.sqrt(self.one / rows + self.two / rows**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 0, norm.cdf(np.abs(self.mean) / spread), np.where(self.mean != 0, 1.0, 0.5))

    def rows_needed(self, often: float = OFTEN) -> np.ndarray:
        """Rows of each task in a step whose sign is right so often; infinite where the mean is zero."""
        # mean² = z² (one / B + two / B²), solved for 1 / B; in this form nothing cancels.
        z = norm.ppf(often)
        mean, one, two = (self.mean / z) ** 2, self.one, self.two
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 2 * mean / (one + np.sqrt(one**2 + 4 * mean * two))
            return np.where(mean > 0, 1 / inverse, np.inf)


def spread(gram: np.ndarray, rows: int) -> Spread:
    """Estimate how products of two tasks are spread, from those of all pairs of micro-batches.

    A two-way analysis of variance without repetition: what belongs to a's micro-batch, to b's, and to both. (For a
    task with itself the figures mean nothing.)

    Args:
        gram: `[N, M, T, M, T]`.
        rows: Rows of a task in each micro-batch.
    """
    table = gram.transpose(0, 2, 4, 1, 3)  # [N, a, b, M of a, M of b]
    count = table.shape[-1]
    whole = table.mean((-1, -2), keepdims=True)
    first, second = table.mean(-1, keepdims=True), table.mean(-2, keepdims=True)
    rest = ((table - first - second + whole) ** 2).sum((-1, -2)) / (count - 1) ** 2
    own = [
        np.maximum(0.0, ((part - whole) ** 2).sum((-1, -2)) / (count - 1) - rest / count) for part in (first, second)
    ]
    return Spread(cross_products(gram), (own[0] + own[1]) * rows, rest * rows**2)
