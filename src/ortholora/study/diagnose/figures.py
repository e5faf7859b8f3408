"""All figures of a diagnosis, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ortholora.study.diagnose.blocks import as_figure, figures_of_point
from ortholora.study.diagnose.direction import surely
from ortholora.study.diagnose.grouping import propose, worth
from ortholora.study.diagnose.pace import figures_of_pace
from ortholora.study.diagnose.products import over_groups
from ortholora.study.diagnose.rows import Groups
from ortholora.study.diagnose.stored import Points
from ortholora.study.diagnose.training import JOINTLY, gradient_points, points_of


def figures(
    points: Points,
    tasks: Sequence[str],
    weights: Sequence[float],
    groups: Groups,
    quota: Sequence[int],
    steps: int,
    adapters: int | None = None,
) -> dict[str, Any]:
    """Judge all points of a diagnosis.

    Returns:
        `points`: of every point with gradients its `step` and what `figures_of_point` says. `pace`: None without steps.
        `transfer`: i → j → what a step on i alone does to j's loss: `change`, `predicted`, `sure`. `grouping`: the best
        `groups` of tasks for so many `adapters`, and how much `more` they are worth than one for all; None without.
    """
    jointly = {step: _load(points, JOINTLY, step) for step in points_of(steps)}
    looked = gradient_points(steps)
    pace = None
    if steps:
        alone = [{step: _load(points, i, step)["losses"] for step in points_of(steps)} for i in range(len(tasks))]
        pace = figures_of_pace({step: found["losses"] for step, found in jointly.items()}, alone, tasks)
    return {
        "points": [
            {"step": step, **figures_of_point(jointly[step], tasks, weights, groups.rows, quota)} for step in looked
        ],
        "pace": pace,
        "transfer": _transfer(jointly[looked[-1]], tasks),
        "grouping": None if adapters is None else _grouping(jointly[looked[-1]], tasks, adapters),
    }


def _load(points: Points, training: int, step: int) -> dict[str, np.ndarray]:
    found = points.load(training, step)
    assert found is not None, "all points are finished"
    return found


def _transfer(arrays: dict[str, np.ndarray], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    changes, predicted = over_groups(arrays["changes"]), arrays["predicted"]
    sure = surely(changes.p)
    return {
        a: {
            b: {"change": as_figure(changes, (i, j)), "predicted": float(predicted[i, j]), "sure": bool(sure[i, j])}
            for j, b in enumerate(tasks)
        }
        for i, a in enumerate(tasks)
    }


def _grouping(arrays: dict[str, np.ndarray], tasks: Sequence[str], adapters: int) -> dict[str, Any]:
    # Of every micro-batch, relative to the mean loss: what the groups are worth is linear in it.
    affinities = -arrays["changes"] / arrays["losses"].mean(0)
    chosen, together = propose(affinities.mean(0), adapters), (tuple(range(len(tasks))),)
    more = over_groups(np.array([worth(chosen, own) - worth(together, own) for own in affinities]))
    return {
        "adapters": adapters,
        "groups": [[tasks[i] for i in group] for group in chosen],
        "more": as_figure(more, ()),
    }
