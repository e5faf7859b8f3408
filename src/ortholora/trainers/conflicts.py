"""How often, how strongly and how surely tasks conflict, over the steps of a run.

One small batch says little: the sign of a cosine between two noisy gradients is close to a coin flip.
What a run can say is the mean of the whole-vector cosine over its steps, set against its own fluctuation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine import StepStats

#: |mean / standard error| above which a sign is called sure (two-sided 95 % normal).
SURE = 1.96


class ConflictTracker:
    """Running sums over steps; a handful of `[T, T]` tensors.

    Args:
        tasks: Names of the T tasks.
    """

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks
        self._sums = self._zeros()
        self._recent = self._zeros()

    def add(self, stats: StepStats) -> None:
        """Add one step."""
        seen = (stats.present[:, None] & stats.present[None, :]).double()
        cosine = stats.total_cosines.detach().cpu().double() * seen
        negative = stats.conflicts.double().mean(0).cpu() * seen
        removed = stats.removed.mean().cpu().double()
        for sums in (self._sums, self._recent):
            sums["steps"] += seen
            sums["cosine"] += cosine
            sums["cosine_squared"] += cosine.square()
            sums["negative"] += negative
            sums["removed"] += removed
            sums["count"] += 1

    def take_recent(self) -> dict[str, float]:
        """Figures since the last call, for the ordinary logs; empty when nothing was added."""
        sums, self._recent = self._recent, self._zeros()
        if not float(sums["count"]):
            return {}
        logs = {"conflict/removed": float(sums["removed"] / sums["count"])}
        pairs = self._pairs(sums)
        if pairs:
            logs["conflict/negative_share"] = sum(p["negative_share"] for p in pairs.values()) / len(pairs)
        logs |= {f"conflict/{pair}/cosine": figures["cosine"] for pair, figures in pairs.items()}
        return logs

    def report(self) -> dict[str, Any] | None:
        """The whole run, or None when nothing was recorded.

        Returns:
            `steps`, `removed` (mean share of the summed gradient that the rule took away) and `pairs`: for
            every pair `a~b` the mean whole-vector `cosine`, its `standard_error` over steps, `negative_share`
            (share of blocks and steps with a negative sign; 0.5 is a coin flip) and `verdict`
            (`conflict`, `agreement` or `unsure`).
        """
        if not float(self._sums["count"]):
            return None
        return {
            "steps": int(self._sums["count"]),
            "removed": float(self._sums["removed"] / self._sums["count"]),
            "pairs": self._pairs(self._sums),
        }

    def state_dict(self) -> dict[str, Any]:
        """Sums, to resume from."""
        return {"sums": self._sums, "recent": self._recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self._sums = {k: v.clone() for k, v in state["sums"].items()}
        self._recent = {k: v.clone() for k, v in state["recent"].items()}

    def _zeros(self) -> dict[str, Tensor]:
        size = len(self.tasks)
        square = ("steps", "cosine", "cosine_squared", "negative")
        sums = {name: torch.zeros(size, size, dtype=torch.float64) for name in square}
        return sums | {name: torch.zeros((), dtype=torch.float64) for name in ("removed", "count")}

    def _pairs(self, sums: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
        pairs = {}
        for i, first in enumerate(self.tasks):
            for j in range(i + 1, len(self.tasks)):
                steps = float(sums["steps"][i, j])
                if steps:
                    figures = _figures(steps, sums["cosine"][i, j], sums["cosine_squared"][i, j])
                    figures["negative_share"] = float(sums["negative"][i, j]) / steps
                    pairs[f"{first}~{self.tasks[j]}"] = figures
        return pairs


def _figures(steps: float, total: Tensor, squared: Tensor) -> dict[str, Any]:
    mean = float(total) / steps
    variance = max(0.0, float(squared) / steps - mean**2) * steps / max(1.0, steps - 1)
    error = math.sqrt(variance / steps) if steps > 1 else None
    return {"cosine": mean, "standard_error": error, "verdict": verdict(mean, error)}


def verdict(mean: float, error: float | None) -> str:
    """`conflict` or `agreement` where the mean cosine is surely not zero, else `unsure`."""
    if error is None or abs(mean) <= SURE * error:
        return "unsure"
    return "conflict" if mean < 0 else "agreement"
