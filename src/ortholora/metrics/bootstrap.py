"""The bootstrap over evaluation rows: resamples as counts, and the intervals from them. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Per cent of resamples outside the interval, on each side.
TAIL = 2.5
#: Entries of one `[rows, resamples]` block: small enough for the cache and for any machine (8 MiB).
_BLOCK = 1_000_000


def draw_rows(generator: np.random.Generator, rows: int, resamples: int) -> Iterator[np.ndarray]:
    """Draw rows with replacement, as many as there are; yield counts `[rows, some resamples]` as floats."""
    size = max(1, min(resamples, _BLOCK // rows))
    for start in range(0, resamples, size):
        width = min(size, resamples - start)
        drawn = generator.integers(0, rows, size=(width, rows))
        cells = drawn * width + np.arange(width)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * width)
        yield counts.reshape(rows, width).astype(np.float64)


def interval(values: np.ndarray) -> list[float]:
    """Return the 95 % percentile interval of resampled values `[B]`: `[low, high]`."""
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    return [float(low), float(high)]
