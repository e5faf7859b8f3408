"""A diagnosis without any training: gradients of known length and direction, in layers of an A and a B each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ortholora.study.diagnose.blocks import figures_of_point
from ortholora.study.diagnose.pace import figures_of_pace
from ortholora.study.diagnose.verdict import headline, verdict

GROUPS, SIZE = 16, 30


def diagnosis(
    tasks: Sequence[str], layers: int = 3, noise: float = 0.3, change: float = 0.0, steps: int = 9
) -> dict[str, Any]:
    """All figures and the verdict. The first task is four times as long as the others; the first two pull apart.

    Args:
        tasks: Names of the tasks; the last has no gradient in the first layer.
        layers: Layers of the adapter.
        noise: Length of the noise of a micro-batch.
        change: What every step does to every loss.
        steps: Steps of the training.
    """
    found: dict[str, Any] = {
        "tasks": list(tasks),
        "settings": {"steps": steps, "count": GROUPS, "rows": 4, "seed": 0, "quota": dict.fromkeys(tasks, 8)},
        "points": [{"step": steps, **_point(tasks, layers, noise)}],
        "pace": _pace(tasks, steps),
        "transfer": {a: {b: _transfer(change) for b in tasks} for a in tasks},
        "grouping": None,
        "provenance": {
            "versions": {"ortholora": "0"},
            "commit": None,
            "date": "today",
            "config": {"backbone": "a backbone"},
            "hardware": {"cpu": "a processor"},
        },
    }
    found["headline"], (found["verdict"], methods) = headline(found), verdict(found)
    found["next"] = f"ortholora compare CONFIG --set 'study.methods=[{', '.join(methods)}]'"
    found["again"] = "ortholora diagnose CONFIG --steps 9 --rows 64"
    return found


def _point(tasks: Sequence[str], layers: int, noise: float) -> dict[str, Any]:
    names = [f"base_model.model.layer.{n}.query.lora_{role}.default.weight" for n in range(layers) for role in "AB"]
    mean = np.random.default_rng(1).normal(scale=1 / math.sqrt(SIZE), size=(len(names), len(tasks), SIZE))
    mean[:, 0] *= 4
    mean[:, 1] -= mean[:, 0] / 4
    drawn = np.random.default_rng(0).normal(size=(len(names), GROUPS, len(tasks), SIZE))
    gradients = mean[:, None] + noise / math.sqrt(SIZE) * drawn
    gradients[:2, :, -1] = 0
    arrays = {
        "gram": np.einsum("nkap,nlbp->nkalb", gradients, gradients),
        "losses": np.ones((GROUPS, len(tasks))),
        "names": np.array(names),
        "layers": np.array([name.partition(".lora_")[0] for name in names]),
        "roles": np.array(["A", "B"] * layers),
    }
    return figures_of_point(arrays, tasks, [1.0] * len(tasks), rows=4, quota=[8] * len(tasks))


def _pace(tasks: Sequence[str], steps: int) -> dict[str, Any]:
    """The last task stands still in company."""
    rows = np.random.default_rng(2).normal(scale=0.05, size=(GROUPS, 1))
    alone = [{0: 1 + rows, steps: 0.5 + 0.9 * rows} for _ in tasks]
    ends = np.array([0.5] * (len(tasks) - 1) + [0.98])
    jointly = {0: 1 + np.repeat(rows, len(tasks), axis=1), steps: ends + 0.8 * rows}
    return figures_of_pace(jointly, alone, tasks)


def _transfer(change: float) -> dict[str, Any]:
    figure = {"value": change, "error": 0.0004, "low": change - 0.001, "high": change + 0.001}
    return {"change": figure, "predicted": change, "sure": change != 0}
