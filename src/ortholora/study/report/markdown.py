"""A study's summary as text: Markdown for a file, a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ortholora.study.report.curves import has_curves
from ortholora.study.report.merged import flatten
from ortholora.study.report.sweep import sweep_lines, sweep_table
from ortholora.study.report.wording import (
    beside,
    bounds,
    difference,
    gap_recovered,
    mean_std,
    sign,
    signed_points,
    times,
)

#: Provenance that a reader looks for first.
_FIRST = ("hardware", "versions", "data")


def to_markdown(summary: dict[str, Any]) -> str:
    """Write a summary as a Markdown document: results, gap, cost, verdict, notes and provenance.

    Args:
        summary: What `summarise` returned.

    Returns:
        The document, with a final newline.
    """
    parts = [
        "# Study: what projection bought",
        f"Metrics in points (hundredths), mean ± standard deviation over {_seeds(summary)}; differences with their "
        "95 % interval. **Bold**: the interval does not hold zero.",
        _results(summary),
        *_on_dev(summary),
        "## Verdict",
        _list(summary["verdict"]),
        "## Gap",
        _gap(summary),
        *_curves(summary),
        *_sweep(summary),
        "## Cost of a step",
        _cost(summary),
        "## How to read this",
        _list(summary["notes"]),
        "## Provenance",
        _provenance(summary["provenance"]),
    ]
    return "\n\n".join(parts) + "\n"


def to_table(summary: dict[str, Any]) -> Table:
    """Lay the results out for a terminal of 100 columns (two rules; more rules wrap).

    Args:
        summary: What `summarise` returned.

    Returns:
        A table with one row a task and one for the average; sure differences are bold.
    """
    table = Table(box=box.SIMPLE_HEAD, title=f"points, mean ± std over {_seeds(summary)}", title_style="dim")
    table.add_column("task", overflow="fold")
    for method in summary["methods"]:
        table.add_column(method, justify="right")
    for task in [*summary["tasks"], "average"]:
        if task == "average":
            table.add_section()
        cells: list[Text] = [_task_cell(summary, task)]
        for method, columns in summary["methods"].items():
            cell = Text(mean_std(columns[task], 1))
            if method in summary["rules"]:
                entry = _difference(summary, method, task)
                cell.append("\n" + signed_points(entry["mean"]), style=_style(entry))
                cell.append(f" {bounds(entry['ci95'])}", style=_style(entry))
            cells.append(cell)
        table.add_row(*cells)
    if summary["rules"]:
        table.caption = "second line: rule − joint, 95 % interval; bold where it does not hold zero"
    return table


def _task_cell(summary: dict[str, Any], task: str) -> Text:
    cell = Text(task, style="bold" if task == "average" else "")
    if task in summary["tasks"]:
        cell.append("\n" + summary["tasks"][task]["metric"], style="dim")
    return cell


def _style(entry: dict[str, Any]) -> str:
    return {1: "bold green", -1: "bold red", 0: "dim"}[sign(entry)]


def _difference(summary: dict[str, Any], rule: str, task: str) -> dict[str, Any]:
    """Return rule − joint for a task or for the average."""
    if task == "average":
        return summary["rules"][rule]["difference"]
    return summary["tasks"][task]["difference"][rule]


def _seeds(summary: dict[str, Any]) -> str:
    number = len(summary["seeds"])
    return "1 seed" if number == 1 else f"{number} seeds"


def _results(summary: dict[str, Any]) -> str:
    methods, rules = list(summary["methods"]), list(summary["rules"])
    header = ["task", "metric", "rows", *methods, *(f"{rule} − joint" for rule in rules)]
    rows = []
    for task in [*summary["tasks"], "average"]:
        of_task = summary["tasks"].get(task, {})
        row = [task, of_task.get("metric", ""), str(of_task.get("rows", ""))]
        row += [mean_std(summary["methods"][method][task]) for method in methods]
        for rule in rules:
            entry = _difference(summary, rule, task)
            row.append(f"**{difference(entry)}**" if sign(entry) else difference(entry))
        rows.append(row)
    return _table(header, rows, left=2)


def _on_dev(summary: dict[str, Any]) -> list[str]:
    """What to choose a method by, where the results above are of test rows."""
    if "on_dev" not in summary:
        return []
    rows = [
        [task, *(mean_std(entry[task]) for entry in summary["on_dev"].values())]
        for task in [*summary["tasks"], "average"]
    ]
    table = _table(["on dev, to choose by", *summary["on_dev"]], rows, left=1)
    tested = [task for task, entry in summary["tasks"].items() if entry["scored_on"] == "test"]
    return [f"The results above are of test rows ({', '.join(tested)}). Choose a method by those of dev rows:", table]


def _gap(summary: dict[str, Any]) -> str:
    lines = [f"Gap (single − joint, mean metric): {difference(summary['gap'])} points."]
    for name, rule in summary["rules"].items():
        if rule["recovered"] is not None:
            lines.append(f"Recovered by {name}: {gap_recovered(rule['recovered'])}.")
    # The reason is the gap's, so it is the same for every rule: said once.
    if summary["recovered"] is None:
        lines.append(f"Recovered: not stated, because {summary['recovered_reason']}.")
    return _list(lines)


def _curves(summary: dict[str, Any]) -> list[str]:
    shown = has_curves(summary["curves"])
    return ["## How the tasks learned", "![Training loss of every task over the steps](curves.png)"] if shown else []


def _sweep(summary: dict[str, Any]) -> list[str]:
    if "sweep" not in summary:
        return []
    table = _table(*sweep_table(summary["sweep"]), left=1)
    picture = "![Mean metric of every method over the values that were tried](sweep.png)"
    return ["## What each method was given", _list(sweep_lines(summary["sweep"])), table, picture]


def _cost(summary: dict[str, Any]) -> str:
    header = [
        "method",
        "adapters",
        "step",
        "step to joint",
        "peak memory",
        "memory to joint",
        "micro-batches",
        "padding",
    ]
    rows = []
    for method, cost in summary["cost"].items():
        seconds, memory = cost["step_seconds"], cost["peak_memory_bytes"]
        rows.append(
            [
                method,
                str(cost["adapters"]),
                "–" if seconds is None else f"{1000 * seconds:.1f} ms{beside(cost)}",
                times(cost["relative_step_seconds"]),
                f"{memory / 2**20:.0f} MiB" if memory else "–",
                times(cost["relative_peak_memory"]),
                f"{cost['micro_batches']:.1f}" if "micro_batches" in cost else "–",
                f"{cost['padding']:.2f}" if "padding" in cost else "–",
            ]
        )
    text = (
        "Against joint. For single: the sum over tasks of a step of each run, and the largest memory of any. "
        "Padding is its share of all tokens computed."
    )
    if any(beside(cost) for cost in summary["cost"].values()):
        text += (
            " A step marked “N at once” was timed while up to N runs shared the machine: it is no measure of cost and "
            "has no ratio. Runs of `--jobs 1` measure it."
        )
    return text + "\n\n" + _table(header, rows, left=1)


def _provenance(provenance: dict[str, Any]) -> str:
    keys = [key for key in _FIRST if key in provenance] + [key for key in provenance if key not in _FIRST]
    shown = {key: provenance[key] for key in keys}
    if "tasks" in shown.get("config", {}):
        # A line each would be long: the page has them, folded away.
        shown["config"] = {**shown["config"], "tasks": "in report.html, and in summary.json"}
    pairs = flatten(shown)
    return _list([f"{key}: {text}" for key, text in pairs]) if pairs else "None was recorded."


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: list[str], rows: list[list[str]], left: int) -> str:
    """Write a Markdown table; the first `left` columns are aligned left, the others right."""
    rule = [":---" if index < left else "---:" for index in range(len(header))]
    # A bar in a cell would end it.
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
