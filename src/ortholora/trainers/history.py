"""How conflicts and sizes changed over a training, block by block, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True, eq=False)
class ConflictHistory:
    """Means over W windows of consecutive steps, for N blocks and, last, everything together.

    Attributes:
        tasks: Names of the T tasks.
        blocks: Names of the N blocks (LoRA matrices, unless the run's `block` is another).
        steps: Steps of every window, `[W]`.
        cosines: Mean cosine of every pair of tasks (in the order of `pairs`), `[W, N + 1, P]`; NaN where not seen.
        cosine_steps: Steps that it is of: those in which both tasks had a gradient, same shape.
        lengths: Mean natural logarithm of the length of every task's gradient, `[W, N + 1, T]`; NaN where not seen.
        length_steps: Steps that it is of, same shape.
    """

    tasks: tuple[str, ...]
    blocks: tuple[str, ...]
    steps: np.ndarray
    cosines: np.ndarray
    cosine_steps: np.ndarray
    lengths: np.ndarray
    length_steps: np.ndarray

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The P pairs of tasks, in the order of the arrays."""
        return pairs_of(self.tasks)


def pairs_of(tasks: tuple[str, ...] | list[str]) -> list[tuple[str, str]]:
    """All pairs of tasks, first by first."""
    return list(combinations(tasks, 2))
