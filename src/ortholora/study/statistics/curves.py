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
#: Where joint has lost less than this share of what single lost of its training loss, it has not learned the task yet.
ENOUGH = 0.9
#: Where single itself lost less than this share of the loss it began with, there is nothing to hold joint against.
_NOTHING = 0.02


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
    """How much of every task's training loss joint training took away, against single training.

    Both see the same rows in the same order. Seed by seed the share is `(start − joint) / (start − single)`, with the
    losses at the end and the larger of the two at the first log. It is relative to the start because a ratio of final
    losses is blind at both ends: 2.8 against 2.0 of 3.0 is far behind, .01 against .001 of .7 is not.

    Returns:
        Task → `start`, `single`, `joint` (mean losses), `ratio` (geometric mean of joint / single at the end), `share`
        (mean), its `ci95` (Student's over the seeds; None for one seed or where there is no share), and `case`:
        `behind` (the share is surely below `ENOUGH`), `learned` (surely not) or `unsure`. Tasks without curves, or
        with losses that are not positive, are left out.
    """
    found = {}
    for task in grid.tasks:
        pairs = [[_curve(grid, "loss", m, s, task) for m in ("single", "joint")] for s in grid.seeds]
        if not all(curve for pair in pairs for curve in pair):
            continue
        ends = np.array([[_ending(curve) for curve in pair] for pair in pairs])
        starts = np.array([max(curve[0][1] for curve in pair) for pair in pairs])
        if np.all(ends > 0) and np.all(np.isfinite(ends)) and np.all(np.isfinite(starts)):
            found[task] = _judge(starts, ends)
    return found


def _ending(curve: Curve) -> float:
    last = curve[-1][0]
    return float(np.mean([value for step, value in curve if step > (1 - LAST_PART) * last]))


def _judge(starts: np.ndarray, ends: np.ndarray) -> dict[str, Any]:
    """Judge final losses `[seeds, 2]` of single and joint, which began at `[seeds]`."""
    lost = starts[:, None] - ends
    share, interval, case = None, None, "unsure"
    if np.all(lost[:, 0] > _NOTHING * starts):
        shares = lost[:, 1] / lost[:, 0]
        share = low = high = float(shares.mean())
        if len(shares) > 1:
            reach = float(student.ppf(0.975, len(shares) - 1)) * float(shares.std(ddof=1)) / math.sqrt(len(shares))
            low, high = interval = [share - reach, share + reach]
        case = "behind" if high < ENOUGH else "learned" if low >= ENOUGH else "unsure"
    return {
        "start": float(starts.mean()),
        "single": float(ends[:, 0].mean()),
        "joint": float(ends[:, 1].mean()),
        "ratio": float(np.exp(np.log(ends[:, 1] / ends[:, 0]).mean())),
        "share": share,
        "ci95": interval,
        "case": case,
    }
