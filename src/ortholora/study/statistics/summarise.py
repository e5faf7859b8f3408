"""What a study found: the mean metrics, the gap, what each rule recovered of it and what it cost.

Every number that is compared has a 95 % interval from a bootstrap over seeds and evaluation rows (`bootstrap.py`).
A difference is called sure when its interval does not hold zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from typing import Any

import numpy as np

from ortholora.runs.record import RunRecord
from ortholora.study.report.curves import curve_sentences
from ortholora.study.report.merged import merge
from ortholora.study.report.sentences import findings, no_gap, notes
from ortholora.study.report.wording import sign
from ortholora.study.statistics.bootstrap import interval, ratio_interval, resample
from ortholora.study.statistics.curves import compare_endings, mean_curves
from ortholora.study.statistics.grid import Grid, arrange

#: Number of the format of `summary.json`.
FORMAT = 1


def summarise(
    records: Sequence[RunRecord],
    *,
    methods: Sequence[str],
    tasks: Sequence[str],
    resamples: int,
    seed: int,
    swept: Iterable[str] = (),
) -> dict[str, Any]:
    """Summarise a study.

    The gap recovered is `(rule − joint) / (single − joint)` on the metric averaged over tasks. Where single is
    not surely better than joint there is no gap to recover: it is `None`, with the reason in words.

    Args:
        records: The finished runs, in any order. Those of other methods and tasks are left out.
        methods: Methods to report, `single` and `joint` among them; all others are rules.
        tasks: Tasks to report and to average over, in the order of the table.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
        swept: Keys that were chosen for every method: no settings of a method's own.

    Returns:
        Plain JSON data; metrics are fractions, times seconds, memory bytes.

    Raises:
        UserError: The records are not complete, or cannot be compared.
    """
    grid = arrange(records, methods, tasks)
    drawn = resample(grid, resamples, seed)
    compare = _Comparison(grid, drawn)
    gap = compare.difference("single", "joint")
    rules = {rule: _rule(grid, compare, rule, gap, set(swept)) for rule in grid.rules}
    # What the study is about is the user's choice: the rule that is listed first. Baselines have none.
    main = next((name for name, entry in rules.items() if entry["rule"]), None)
    summary: dict[str, Any] = {
        "format": FORMAT,
        "seeds": list(grid.seeds),
        "resamples": resamples,
        "bootstrap_seed": seed,
        "methods": {method: _method(grid, method) for method in grid.methods},
        "gap": gap,
        "recovered_method": main,
        "recovered": rules[main]["recovered"] if main else None,
        "recovered_reason": rules[main]["recovered_reason"] if main else "no rule was compared",
        "rules": rules,
        "tasks": {task: _task(grid, compare, task) for task in grid.tasks},
        "cost": _costs(grid),
        "cut_rows": _cut_rows(grid),
        "dropped_rows": _dropped_rows(grid),
        "curves": mean_curves(grid),
        "endings": compare_endings(grid),
        "provenance": merge([record.provenance for record in grid.records]),
    }
    if any(grid.scored_on(task) == "test" for task in grid.tasks):
        summary["on_dev"] = {method: _on_dev(grid, method) for method in grid.methods}
    summary["verdict"] = findings(summary) + curve_sentences(summary)
    summary["notes"] = notes(summary)
    return summary


class _Comparison:
    """Point values and resampled values of one study, and the differences between methods."""

    def __init__(self, grid: Grid, drawn: np.ndarray) -> None:
        self.grid = grid
        #: Resampled means over tasks `[B, methods]` under None, and per task.
        self.drawn: dict[str | None, np.ndarray] = {
            None: drawn.mean(axis=2),
            **{t: drawn[:, :, i] for i, t in enumerate(grid.tasks)},
        }
        means = grid.values.mean(axis=1)
        self.means: dict[str | None, np.ndarray] = {
            None: means.mean(axis=1),
            **{t: means[:, i] for i, t in enumerate(grid.tasks)},
        }

    def resampled(self, method: str, other: str, task: str | None = None) -> np.ndarray:
        """Return the resampled differences method − other, `[B]`."""
        left, right = self.grid.methods.index(method), self.grid.methods.index(other)
        return self.drawn[task][:, left] - self.drawn[task][:, right]

    def point(self, method: str, other: str, task: str | None = None) -> float:
        """Return the difference method − other on all rows and seeds."""
        left, right = self.grid.methods.index(method), self.grid.methods.index(other)
        return float(self.means[task][left] - self.means[task][right])

    def difference(self, method: str, other: str, task: str | None = None) -> dict[str, Any]:
        """Return the difference with its interval."""
        return {
            "mean": self.point(method, other, task),
            "ci95": interval(self.resampled(method, other, task)),
        }


def _cut_rows(grid: Grid) -> dict[str, int]:
    """Rows of every task that were longer than `max_length`, all parts together; only tasks that have some."""
    found = [record.provenance.get("cut_rows", {}) for record in grid.records]
    return {task: most for task in grid.tasks if (most := max(rows.get(task, 0) for rows in found))}


def _dropped_rows(grid: Grid) -> dict[str, dict[str, int]]:
    """Bad rows of every task that were left out, by part; only tasks that had some."""
    return {task: parts for r in grid.records for task, parts in r.provenance.get("dropped_rows", {}).items()}


def _rule(grid: Grid, compare: _Comparison, rule: str, gap: dict[str, Any], swept: Set[str]) -> dict[str, Any]:
    record = grid.cells[rule, grid.seeds[0], grid.tasks[0]]
    recovered, reason = None, None
    # The mean over rows and seeds can be at or below zero even so, with a skewed metric and few rows.
    if sign(gap) > 0 and gap["mean"] > 0:
        recovered = {
            "mean": compare.point(rule, "joint") / gap["mean"],
            "ci95": ratio_interval(compare.resampled(rule, "joint"), compare.resampled("single", "joint")),
        }
    else:
        reason = no_gap(gap)
    return {
        **_merged(grid, rule),
        **_groups(grid, rule),
        "rule": record.rule,
        "block": record.block,
        "settings": {k: v for k, v in (record.provenance.get("settings") or {}).items() if k not in swept},
        "difference": compare.difference(rule, "joint"),
        "recovered": recovered,
        "recovered_reason": reason,
    }


def _merged(grid: Grid, rule: str) -> dict[str, Any]:
    """How a method was merged; `kept` is the mean over seeds. Nothing for one that was trained."""
    found = [grid.cells[rule, seed, grid.tasks[0]].provenance.get("merge") for seed in grid.seeds]
    merges = [merge for merge in found if merge is not None]
    return {"merge": merges[0] | {"kept": float(np.mean([m["kept"] for m in merges]))}} if merges else {}


def _groups(grid: Grid, rule: str) -> dict[str, Any]:
    """The tasks of each adapter of a method that has several; nothing for one adapter."""
    parts = [list(record.tasks) for record in grid.of_method(rule, grid.seeds[0])]
    return {"groups": parts} if len(parts) > 1 else {}


def _method(grid: Grid, method: str) -> dict[str, Any]:
    values = grid.values[grid.methods.index(method)]
    columns = {task: values[:, index] for index, task in enumerate(grid.tasks)}
    columns["average"] = values.mean(axis=1)
    return {name: _over_seeds(column) for name, column in columns.items()}


def _on_dev(grid: Grid, method: str) -> dict[str, Any]:
    """The method's metrics on dev, to choose by, over seeds."""
    rows = [[_dev_metric(grid.cells[method, seed, task], task) for task in grid.tasks] for seed in grid.seeds]
    values = np.array(rows)
    columns = {task: values[:, index] for index, task in enumerate(grid.tasks)} | {"average": values.mean(axis=1)}
    return {name: _over_seeds(column) for name, column in columns.items()}


def _dev_metric(record: RunRecord, task: str) -> float:
    return record.dev_metrics.get(task, record.metrics[task])


def _over_seeds(values: np.ndarray) -> dict[str, Any]:
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": std, "values": values.tolist()}


def _task(grid: Grid, compare: _Comparison, task: str) -> dict[str, Any]:
    return {
        "metric": grid.metric(task),
        "rows": len(grid.targets(task)),
        "scored_on": grid.scored_on(task),
        "gap": compare.difference("single", "joint", task),
        "difference": {rule: compare.difference(rule, "joint", task) for rule in grid.rules},
    }


def _costs(grid: Grid) -> dict[str, Any]:
    """Cost of a step that serves every task: for `single`, one step of each of its T runs."""
    costs = {method: _cost(grid, method) for method in grid.methods}
    for cost in costs.values():
        for key in ("step_seconds", "peak_memory_bytes"):
            # 0 bytes means not measured.
            joint = costs["joint"][key]
            known = cost[key] is not None and joint
            # Times of steps that other runs disturbed are no measure of what a method costs.
            if key == "step_seconds" and max(cost["jobs"], costs["joint"]["jobs"]) > 1:
                known = False
            cost["relative_" + key.removesuffix("_bytes")] = cost[key] / joint if known and cost[key] else None
    return costs


def _cost(grid: Grid, method: str) -> dict[str, Any]:
    runs = [grid.of_method(method, seed) for seed in grid.seeds]
    seconds = float(np.mean([sum(record.step_seconds for record in records) for records in runs]))
    return {
        "step_seconds": seconds if math.isfinite(seconds) else None,
        "peak_memory_bytes": max(record.peak_memory_bytes for records in runs for record in records),
        "micro_batches": float(np.mean([sum(record.micro_batches for record in records) for records in runs])),
        "padding": float(np.mean([record.padding for records in runs for record in records])),
        "adapters": len(runs[0]),
        "jobs": max(record.provenance.get("jobs", 1) for records in runs for record in records),
    }
