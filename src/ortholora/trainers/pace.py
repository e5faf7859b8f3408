"""How far each task has come, against the others."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Pace:
    """Losses relative to where they began, and to one another (the relative inverse training rate of GradNorm).

    `pace_t = (L_t / L_t at the first log) / mean over tasks of the same`: above 1 for a task that lags behind.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}

    def of(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The pace of every task that has a loss now, and had one before.

        Args:
            losses: Task → its mean loss since the last log.
        """
        rates = {task: loss / self.first[task] for task, loss in losses.items() if task in self.first}
        for task, loss in losses.items():
            if math.isfinite(loss) and loss > 0:
                self.first.setdefault(task, loss)
        mean = sum(rates.values()) / len(rates) if rates else 0.0
        return {task: rate / mean for task, rate in rates.items()} if mean > 0 and math.isfinite(mean) else {}
