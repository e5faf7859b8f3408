"""The curves of a study, and what they say of a gap: is a task not learned yet, or does it generalise worse?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from ortholora.runs.record import Curve
from ortholora.study.statistics.grid import Grid

#: A run's final training loss is its mean over this last part of the training.
LAST_PART = 0.2
#: Where joint's final training loss is so many times single's, joint has not learned the task yet.
BEHIND = 1.5


def mean_curves(grid: Grid) -> dict[str, Any]:
    """Curves of every task and method, over seeds.

    Returns:
        `loss` and `metric` → task → method → `steps`, and at each of them `mean`, `low` and `high` over the seeds. A
        method is missing where its runs kept no curve, or have no step in common.
    """
    return {
        kind: {
            task: {
                method: entry
                for method in grid.methods
                if (entry := _over_seeds([_curve(grid, kind, method, seed, task) for seed in grid.seeds]))
            }
            for task in grid.tasks
        }
        for kind in ("loss", "metric")
    }


def _curve(grid: Grid, kind: str, method: str, seed: int, task: str) -> Curve:
    return grid.cells[method, seed, task].curves.get(kind, {}).get(task, [])


def _over_seeds(curves: Sequence[Curve]) -> dict[str, list[float]] | None:
    """Mean and range at the steps that all curves have (early stopping ends some sooner)."""
    points = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(point) for point in points)))
    if not steps:
        return None
    values = np.array([[point[step] for step in steps] for point in points])
    summed = {"mean": values.mean(0), "low": values.min(0), "high": values.max(0)}
    return {"steps": [float(step) for step in steps], **{name: value.tolist() for name, value in summed.items()}}


def compare_endings(grid: Grid) -> dict[str, dict[str, Any]]:
    """How much of every task's training loss is left at the end under joint training, against single training.

    Both see the same rows in the same order. The ratio of the final losses is judged on a logarithmic scale, with
    Student's interval over the seeds.

    Returns:
        Task → `single`, `joint` (mean final losses), `ratio` (geometric mean), its `ci95` (None for one seed), and
        `case`: `behind` (joint surely has more loss left, `BEHIND` times as much or more), `learned` (surely less
        than that) or `unsure`. Tasks without curves, or with losses that are not positive, are left out.
    """
    found = {}
    for task in grid.tasks:
        ends = [[_ending(_curve(grid, "loss", m, s, task)) for m in ("single", "joint")] for s in grid.seeds]
        if all(value is not None and value > 0 for pair in ends for value in pair):
            found[task] = _judge(np.array(ends, dtype=float))
    return found


def _ending(curve: Curve) -> float | None:
    if not curve:
        return None
    last = curve[-1][0]
    return float(np.mean([value for step, value in curve if step > (1 - LAST_PART) * last]))


def _judge(ends: np.ndarray) -> dict[str, Any]:
    """Judge final losses `[seeds, 2]` of single and joint."""
    logs = np.log(ends[:, 1] / ends[:, 0])
    mean, interval = float(logs.mean()), None
    if len(logs) > 1:
        reach = float(student.ppf(0.975, len(logs) - 1)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
        interval = [mean - reach, mean + reach]
    low, high = interval or (mean, mean)
    bound = math.log(BEHIND)
    case = "behind" if mean >= bound and low > 0 else "learned" if high < bound else "unsure"
    return {
        "single": float(ends[:, 0].mean()),
        "joint": float(ends[:, 1].mean()),
        "ratio": math.exp(mean),
        "ci95": interval and [math.exp(low), math.exp(high)],
        "case": case,
    }
