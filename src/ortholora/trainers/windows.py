"""Means of figures over windows of steps: how they changed, and how sure their mean is.

The steps of a training are not independent, so that their spread over single steps says too little of how sure a mean
is. Means of windows are less dependent the longer the windows are (batch means; binning in physics). There are at most
`MOST` windows: when they are full, two and two become one, so that memory does not grow with the training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

#: The most windows, and the fewest where figures are many.
MOST, FEWEST = 32, 4
#: The most numbers that are kept (16 MiB).
_NUMBERS = 2**22
#: What is left of the first autocorrelation's effect is never taken for more than this.
_STRONGEST = 0.9


class Windows:
    """Sums and counts of a tensor of figures, by windows of consecutive steps; on the figures' device, unsynchronised.

    Attributes:
        steps: Steps that were added.
        width: Steps of a full window.
    """

    def __init__(self) -> None:
        self.steps: int = 0
        self.width: int = 1
        self._inside = 0  # steps in the last window
        self._used = 0  # windows in use
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, values: Tensor, seen: Tensor) -> None:
        """Add the figures of one step.

        Args:
            values: Any shape, the same in every step.
            seen: Which of them exist in this step, same shape (or one that broadcasts).
        """
        if self._sums is None or self._counts is None:
            self._sums, self._counts = self._room(values), self._room(values)
        if self._sums.device != values.device:  # restored, or moved
            self._sums, self._counts = self._sums.to(values.device), self._counts.to(values.device)
        if self._used == 0 or self._inside == self.width:
            if self._used == len(self._sums):
                self._merge()
            self._used, self._inside = self._used + 1, 0
        self._sums[self._used - 1] += torch.where(seen, values, 0).to(self._sums)
        self._counts[self._used - 1] += seen
        self._inside += 1
        self.steps += 1

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean of every window (NaN where nothing was seen) and the steps it is of, `[W, *shape]` each."""
        if self._sums is None or self._counts is None:
            return np.zeros(0), np.zeros(0)
        sums, counts = (part[: self._used].cpu().double().numpy() for part in (self._sums, self._counts))
        with np.errstate(invalid="ignore"):
            return sums / counts, counts

    @property
    def lengths(self) -> np.ndarray:
        """Steps of every window, `[W]`."""
        full = np.full(self._used, self.width, dtype=np.int64)
        full[-1:] = self._inside
        return full

    def state_dict(self) -> dict[str, Any]:
        """What to go on from."""
        numbers = {"steps": self.steps, "width": self.width, "inside": self._inside, "used": self._used}
        return numbers | {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.steps, self.width = state["steps"], state["width"]
        self._inside, self._used = state["inside"], state["used"]
        self._sums, self._counts = (None if state[k] is None else state[k].clone() for k in ("sums", "counts"))

    def _room(self, values: Tensor) -> Tensor:
        fitting = _NUMBERS // (2 * max(1, values.numel()))
        most = max(FEWEST, min(MOST, fitting - fitting % 2))
        return torch.zeros(most, *values.shape, dtype=torch.float32, device=values.device)

    def _merge(self) -> None:
        """Make one window of two, and room for as many new ones."""
        for part in (self._sums, self._counts):
            assert part is not None
            half = len(part) // 2
            part[:half] = part[0::2] + part[1::2]
            part[half:] = 0
        self._used //= 2
        self.width *= 2


def mean_and_error(means: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over all steps and its standard error, from the means of windows.

    `Var = Σ_w (c_w (x_w − x))² / (Σ c)² · W / (W − 1)`, times `(1 + ρ) / (1 − ρ)` where neighbouring windows still go
    together (ρ > 0 is their correlation; the factor is exact for a first-order autoregression).

    Args:
        means: Mean of every window, `[W, ...]`; NaN where nothing was seen.
        counts: Steps that it is of, same shape.

    Returns:
        The two, `[...]`. The mean is NaN where nothing was seen, the error where fewer than two windows were.
    """
    values = np.where(counts > 0, means, 0.0)
    total, used = counts.sum(0), (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (values * counts).sum(0) / total
        apart = counts * (values - mean)
        squares = (apart**2).sum(0)
        together = np.where(squares > 0, (apart[1:] * apart[:-1]).sum(0) / squares, 0.0).clip(0.0, _STRONGEST)
        variance = squares / total**2 * used / (used - 1) * (1 + together) / (1 - together)
        return mean, np.where(used > 1, np.sqrt(variance), np.nan)
