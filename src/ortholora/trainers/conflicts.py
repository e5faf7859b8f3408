"""How often, how strongly and how surely tasks conflict, over the steps of a run.

One small batch says little: the sign of a cosine between two noisy gradients is close to a coin flip.
What a run can say is the mean of the cosine over its steps, set against its own fluctuation (`windows.py`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ortholora.engine import StepStats
from ortholora.engine.stats import cosines
from ortholora.trainers.history import ConflictHistory, pairs_of
from ortholora.trainers.windows import Windows, mean_and_error

#: |mean / standard error| above which a sign is called sure (two-sided 95 % normal).
SURE = 1.96
#: The same of Student's distribution, for 1, 2, … degrees of freedom.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class ConflictTracker:
    """Running sums over steps. They stay on the device of the gradients: adding a step synchronises nothing.

    Args:
        tasks: Names of the T tasks.
    """

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks
        self._pairs = pairs_of(tasks)
        self._blocks: tuple[str, ...] = ()
        self._windows = {name: Windows() for name in ("cosines", "lengths", "negative", "removed")}
        self._recent: dict[str, Tensor] = {}

    def add(self, stats: StepStats) -> None:
        """Add one step."""
        self._blocks = stats.blocks
        gram = stats.gram.detach().float()
        gram = torch.cat([gram, gram.sum(0, keepdim=True)])  # the last row: everything together
        squares = gram.diagonal(dim1=1, dim2=2)
        # A step that overflowed (GradScaler skips it) would spoil every mean after it.
        there = (squares > 0) & squares.isfinite() & stats.present.to(gram.device)
        first, second = torch.triu_indices(len(self.tasks), len(self.tasks), 1, device=gram.device)
        both = there[:, first] & there[:, second]
        lengths = 0.5 * torch.where(there, squares, 1).log()
        negative = (gram[:-1, first, second] < 0).float().mean(0)
        removed = stats.removed.detach().mean().to(gram.device)
        self._windows["cosines"].add(cosines(gram)[:, first, second], both)
        self._windows["lengths"].add(lengths, there)
        self._windows["negative"].add(negative, both[-1])
        self._windows["removed"].add(removed, removed.isfinite())
        for name, value, seen in (
            ("negative", negative, both[-1]),
            ("lengths", lengths[-1], there[-1]),
            ("removed", removed, removed.isfinite()),
        ):
            added = torch.stack([torch.where(seen, value, 0), seen.to(value)])
            self._recent[name] = added + self._recent[name].to(added) if name in self._recent else added

    def take_recent(self) -> dict[str, float]:
        """Figures for the ordinary logs; empty when nothing was added since the last call.

        Returns:
            Since the last call: `conflict/removed`, `conflict/negative_share`, and `size/<task>`, the length of its
            gradient over the geometric mean of all. Since the training began: `conflict/<a>-<b>`, the mean cosine of
            the pair's whole gradients, and `conflict_error/<a>-<b>`, its standard error.
        """
        recent = {name: (sums / count.clamp_min(1)).cpu().double() for name, (sums, count) in self._recent.items()}
        counts = {name: count.cpu() for name, (_, count) in self._recent.items()}
        self._recent = {}
        if not recent:
            return {}
        logs = {"conflict/removed": float(recent["removed"])}
        if bool(counts["negative"].any()):
            logs["conflict/negative_share"] = float(recent["negative"][counts["negative"] > 0].mean())
        for (a, b), (mean, error, _) in self._cosines().items():
            logs[f"conflict/{a}-{b}"] = mean
            if error is not None:
                logs[f"conflict_error/{a}-{b}"] = error
        there = counts["lengths"] > 0
        if len(self.tasks) > 1 and bool(there.any()):
            sizes = (recent["lengths"] - recent["lengths"][there].mean()).exp().tolist()
            logs |= {f"size/{task}": sizes[i] for i, task in enumerate(self.tasks) if there[i]}
        return logs

    def report(self) -> dict[str, Any] | None:
        """The whole run, or None when nothing was recorded.

        Returns:
            `steps`, `removed` (mean share of the summed gradient that the rule took away), `sizes` (task → length of
            its gradient over the geometric mean of all) and `pairs`: for every pair `a~b` the mean whole-vector
            `cosine`, its `standard_error` and the `windows` of steps it is from, `negative_share` (share of blocks and
            steps with a negative sign; 0.5 is a coin flip) and `verdict` (`conflict`, `agreement` or `unsure`).
        """
        if not self._windows["removed"].steps:
            return None
        negative, _ = mean_and_error(*self._windows["negative"].means())
        pairs = {}
        for (a, b), (mean, error, windows) in self._cosines().items():
            pairs[f"{a}~{b}"] = {
                "cosine": mean,
                "standard_error": error,
                "windows": windows,
                "verdict": relation(mean, error, windows),
                "negative_share": float(negative[self._pairs.index((a, b))]),
            }
        removed, _ = mean_and_error(*self._windows["removed"].means())
        steps = self._windows["removed"].steps
        return {"steps": steps, "removed": float(removed), "sizes": self._sizes(), "pairs": pairs}

    def history(self) -> ConflictHistory | None:
        """Every block's figures over the run, or None when nothing was recorded."""
        if not self._windows["cosines"].steps:
            return None
        cosine, cosine_steps = self._windows["cosines"].means()
        length, length_steps = self._windows["lengths"].means()
        steps = self._windows["cosines"].lengths
        return ConflictHistory(tuple(self.tasks), self._blocks, steps, cosine, cosine_steps, length, length_steps)

    def state_dict(self) -> dict[str, Any]:
        """Sums, to resume from."""
        windows = {name: window.state_dict() for name, window in self._windows.items()}
        return {"blocks": self._blocks, "windows": windows, "recent": self._recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        if "windows" not in state:
            warnings.warn("The checkpoint is of an earlier version: conflict figures start anew", stacklevel=2)
            return
        self._blocks = tuple(state["blocks"])
        for name, window in self._windows.items():
            window.load_state_dict(state["windows"][name])
        self._recent = {name: sums.clone() for name, sums in state["recent"].items()}

    def _cosines(self) -> dict[tuple[str, str], tuple[float, float | None, int]]:
        """Pair → mean cosine of the whole gradients, its standard error, and the windows it is from."""
        if not self._pairs:
            return {}
        means, counts = (part[:, -1] for part in self._windows["cosines"].means())
        mean, error = mean_and_error(means, counts)
        used = (counts > 0).sum(0)
        return {
            pair: (float(mean[i]), None if math.isnan(error[i]) else float(error[i]), int(used[i]))
            for i, pair in enumerate(self._pairs)
            if used[i]
        }

    def _sizes(self) -> dict[str, float]:
        mean, _ = mean_and_error(*(part[:, -1] for part in self._windows["lengths"].means()))
        there = np.isfinite(mean)
        middle = float(mean[there].mean()) if there.any() else 0.0
        return {task: math.exp(mean[i] - middle) for i, task in enumerate(self.tasks) if there[i]}


def relation(mean: float, error: float | None, windows: int | None = None) -> str:
    """`conflict` or `agreement` where the mean cosine is surely not zero, else `unsure`.

    Args:
        mean: The mean.
        error: Its standard error, if it has one.
        windows: From how many windows it is; of few, it must be further from zero (Student's distribution).
    """
    if error is None or abs(mean) <= sure_from(windows) * error:
        return "unsure"
    return "conflict" if mean < 0 else "agreement"


def sure_from(windows: int | None) -> float:
    """How many standard errors a mean must be away from zero (two-sided 95 %)."""
    if windows is None:
        return SURE
    freedom = max(1, windows - 1)
    # Beyond the table a close upper bound.
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else SURE + 2.7 / freedom
