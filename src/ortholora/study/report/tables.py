"""The tables of a study's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ortholora.runs.record import RunRecord
from ortholora.study.report.page import Cell, Table
from ortholora.study.report.wording import beside, difference, mean_std, points, sign, times


def differences_of(summary: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """Row (a task, or `average`) → method − joint."""
    if method == "single":
        found = {task: entry["gap"] for task, entry in summary["tasks"].items()}
        return found | {"average": summary["gap"]}
    found = {task: entry["difference"][method] for task, entry in summary["tasks"].items()}
    return found | {"average": summary["rules"][method]["difference"]}


def results_table(summary: dict[str, Any]) -> Table:
    """Every method on every task; below a method's value its difference to joint."""
    seeds = len(summary["seeds"])
    over = "one seed" if seeds == 1 else f"mean ± standard deviation over {seeds} seeds"
    rows: list[list[str | Cell]] = []
    for name in [*summary["tasks"], "average"]:
        row: list[str | Cell] = [name, _metric(summary["tasks"].get(name))]
        for method, columns in summary["methods"].items():
            if method == "joint":
                row.append(Cell(mean_std(columns[name])))
            else:
                entry = differences_of(summary, method)[name]
                row.append(Cell(f"{mean_std(columns[name])}\n{difference(entry)}", sign(entry)))
        rows.append(row)
    caption = (
        f"Metrics on {_rows_of(summary['tasks'])}, in points (hundredths): {over}. Small: the difference to joint "
        "training with its 95 % interval. ▲ surely better than joint, ▼ surely worse; unmarked: the interval holds 0."
    )
    return Table(["task", "metric", *summary["methods"]], rows, caption, left=2, last_is_total=True)


def dev_table(summary: dict[str, Any]) -> Table | None:
    """What to choose a method by, where the results are of test rows."""
    if "on_dev" not in summary:
        return None
    rows = [
        [task, *(mean_std(entry[task]) for entry in summary["on_dev"].values())]
        for task in [*summary["tasks"], "average"]
    ]
    caption = "The results above are of test rows. Choose a method by these, of the dev rows."
    return Table(["task", *summary["on_dev"]], rows, caption, last_is_total=True)


def _metric(task: dict[str, Any] | None) -> str | Cell:
    return "" if task is None else Cell(f"{task['metric']}\n{task['rows']:,} rows")


def _rows_of(tasks: dict[str, Any]) -> str:
    parts = {entry.get("scored_on", "dev") for entry in tasks.values()}
    return f"the {parts.pop()} rows" if len(parts) == 1 else "the test rows, or the dev rows of tasks that have none"


def cost_table(summary: dict[str, Any]) -> Table:
    """What a step of every method costs."""
    rows = []
    for method, cost in summary["cost"].items():
        seconds, memory = cost["step_seconds"], cost["peak_memory_bytes"]
        rows.append(
            [
                method,
                str(cost["adapters"]),
                "–" if seconds is None else f"{1000 * seconds:.1f} ms{beside(cost)}",
                times(cost["relative_step_seconds"]),
                f"{memory / 2**20:,.0f} MiB" if memory else "–",
                times(cost["relative_peak_memory"]),
                f"{cost['micro_batches']:.1f}" if "micro_batches" in cost else "–",
                f"{100 * cost['padding']:.0f} %" if "padding" in cost else "–",
            ]
        )
    header = ["method", "adapters", "step", "against joint", "memory", "against joint", "micro-batches", "padding"]
    caption = (
        "A step that serves every task. For single: the sum over tasks of a step of each run, and the largest memory "
        "of any. Padding is its share of all tokens computed."
    )
    if any(cost.get("jobs", 1) > 1 for cost in summary["cost"].values()):
        caption += (
            " Times marked “N at once” were taken while so many runs shared the machine: they are no measure of cost, "
            "and have no ratio. `compare --jobs 1` measures it."
        )
    return Table(header, rows, caption)


def runs_table(records: Sequence[RunRecord], tasks: Sequence[str]) -> Table:
    """The finished runs of a study that cannot be summarised yet."""
    rows = [
        [
            f"{record.method}, seed {record.seed}",
            *(points(record.metrics[t]) if t in record.metrics else "–" for t in tasks),
        ]
        for record in sorted(records, key=lambda record: (record.seed, record.method))
    ]
    return Table(["run", *tasks], rows, "Metrics of the finished runs, in points.")
