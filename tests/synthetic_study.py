"""Synthetic studies with a known truth, for the tests of the study package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import norm

from ortholora.metrics.compute import compute
from ortholora.runs.record import RunRecord

SKILL = {"single": 0.80, "joint": 0.70, "ortho": 0.75}


def study(
    generator: np.random.Generator,
    *,
    skill: Mapping[str, float] = SKILL,
    seeds: int = 3,
    tasks: int = 2,
    rows: int = 400,
    seed_spread: float = 0.005,
) -> list[RunRecord]:
    """Make the records of a study whose methods have a known expected accuracy on every task.

    A row has a difficulty that all runs share, so that the runs' errors go together as real ones do.
    """
    names = [f"task{index}" for index in range(tasks)]
    targets = {name: generator.integers(0, 2, rows) for name in names}
    difficulty = {name: generator.normal(size=rows) for name in names}
    records = []
    for method, mean in skill.items():
        for seed in range(seeds):
            predictions = {}
            for name in names:
                chance = np.clip(mean + seed_spread * generator.normal(), 0.001, 0.999)
                hardness = np.sqrt(0.6) * difficulty[name] + np.sqrt(0.4) * generator.normal(size=rows)
                right = hardness < norm.ppf(chance)
                predictions[name] = np.where(right, targets[name], 1 - targets[name])
            for group in [[name] for name in names] if method == "single" else [names]:
                records.append(record(method, seed, {n: targets[n] for n in group}, {n: predictions[n] for n in group}))
    return records


def record(
    method: str,
    seed: int,
    targets: dict[str, np.ndarray],
    predictions: dict[str, np.ndarray],
    metric: Any = "accuracy",
    num_labels: int | None = 2,
    **changes: Any,
) -> RunRecord:
    """Make one record; all its tasks have the same metric."""
    values: dict[str, Any] = {
        "method": method,
        "rule": None if method == "single" else {"joint": "sum"}.get(method, "ortho"),
        "block": None if method == "single" else "matrix",
        "seed": seed,
        "tasks": tuple(targets),
        "metrics": {t: compute(metric, targets[t], predictions[t], num_labels) for t in targets},
        "metric_names": dict.fromkeys(targets, metric),
        "targets": targets,
        "predictions": predictions,
        "num_labels": dict.fromkeys(targets, num_labels),
        "step_seconds": 0.1 if method == "single" else 0.2,
        "peak_memory_bytes": 100 * 2**20 if method == "single" else 200 * 2**20,
        "provenance": {"hardware": "2 CPU cores", "versions": {"torch": "2.9.0"}, "data": "generated"},
    }
    return RunRecord(**{**values, **changes})


def methods_and_tasks(records: list[RunRecord]) -> dict[str, list[str]]:
    """Return the arguments `methods` and `tasks` of `summarise` that take in all records."""
    return {
        "methods": list(dict.fromkeys(r.method for r in records)),
        "tasks": list(dict.fromkeys(task for r in records for task in r.tasks)),
    }
