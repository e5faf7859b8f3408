"""A study's summary as a picture: the metrics by seed on the left, the differences to joint on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ortholora.files import replace_file
from ortholora.study.report.wording import difference, gap_recovered, sign, times

# Okabe and Ito's colours, told apart by colour-blind readers; markers differ too, for print in grey.
_FIXED = {"single": ("#0072B2", "s"), "joint": ("#595959", "o")}
_RULES = (("#D55E00", "D"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X"))
#: Share of a task's row that its methods are spread over.
_SPREAD = 0.6
_WIDTH, _MARGIN_INCHES = 11.0, 2.35
_LONGEST_NAME = 22


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw a summary to a PNG file, whole or not at all.

    Args:
        summary: What `summarise` returned.
        path: The file.
    """
    rows = [*summary["tasks"], "average"]
    per_row = 0.22 + 0.16 * len(summary["methods"])
    height = _MARGIN_INCHES + max(1.6, per_row * len(rows))
    # A Figure of its own, not pyplot's: no global state, no display.
    figure = Figure(figsize=(_WIDTH, height), dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    looks = styles(list(summary["methods"]))
    _metrics(left, summary, rows, looks)
    _differences(right, summary, rows, looks)
    for axes in (left, right):
        _dress(axes, summary, rows)
    _words(figure, summary, looks)
    figure.subplots_adjust(
        left=0.17, right=0.98, wspace=0.05, top=1 - 1.35 / height, bottom=(_MARGIN_INCHES - 1.35) / height
    )
    replace_file(path, lambda stream: figure.savefig(stream, format="png"))


def styles(methods: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in every picture of a study."""
    rules = [method for method in methods if method not in _FIXED]
    return {**_FIXED, **{rule: _RULES[index % len(_RULES)] for index, rule in enumerate(rules)}}


def _offsets(names: list[str]) -> dict[str, float]:
    """Vertical place of each method within a row; the first is on top (the axis is inverted)."""
    step = _SPREAD / max(len(names) - 1, 1)
    middle = (len(names) - 1) / 2
    return {name: (index - middle) * step for index, name in enumerate(names)}


def _metrics(axes: Axes, summary: dict[str, Any], rows: list[str], looks: dict[str, tuple[str, str]]) -> None:
    offsets = _offsets(list(summary["methods"]))
    for method, columns in summary["methods"].items():
        colour, marker = looks[method]
        for place, row in enumerate(rows):
            y = place + offsets[method]
            values = [100 * value for value in columns[row]["values"]]
            if len(values) > 1:
                axes.plot(values, [y] * len(values), ".", color=colour, alpha=0.35, markersize=7, mew=0)
            axes.plot(100 * columns[row]["mean"], y, marker, color=colour, markersize=7, mec="white", mew=0.6)
    axes.set_xlabel(f"metric on {_parts(summary)}, points (faint dots: seeds)", fontsize=9)


def _differences(axes: Axes, summary: dict[str, Any], rows: list[str], looks: dict[str, tuple[str, str]]) -> None:
    names = [method for method in summary["methods"] if method != "joint"]
    offsets = _offsets(list(summary["methods"]))
    for place, row in enumerate(rows):
        for name in names:
            entry = _entry(summary, name, row)
            low, high = (100 * bound for bound in entry["ci95"])
            colour, marker = looks[name]
            y = place + offsets[name]
            axes.plot([low, high], [y, y], "-", color=colour, linewidth=1.8, solid_capstyle="butt")
            # Filled where the difference is sure.
            face = colour if sign(entry) else "white"
            axes.plot(100 * entry["mean"], y, marker, markersize=6, mfc=face, mec=colour, mew=1.3)
    axes.axvline(0, color=looks["joint"][0], linewidth=1.4, zorder=1)
    axes.set_xlabel("difference to joint, points, 95 % interval (filled: does not hold zero)", fontsize=9)


def _entry(summary: dict[str, Any], method: str, row: str) -> dict[str, Any]:
    """Return method − joint for a task or the average."""
    if row == "average":
        return summary["gap"] if method == "single" else summary["rules"][method]["difference"]
    task = summary["tasks"][row]
    return task["gap"] if method == "single" else task["difference"][method]


def _dress(axes: Axes, summary: dict[str, Any], rows: list[str]) -> None:
    labels = []
    for row in rows:
        name = row if len(row) <= _LONGEST_NAME else row[: _LONGEST_NAME - 1] + "…"
        metric = summary["tasks"].get(row, {}).get("metric")
        labels.append(f"{name}\n{metric}" if metric else name)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for place in range(0, len(rows), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#F2F2F2", zorder=-2, linewidth=0)
    axes.axhline(len(rows) - 1.5, color="black", linewidth=0.8)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6, zorder=-1)
    axes.set_axisbelow(True)
    axes.margins(x=0.06)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _words(figure: Figure, summary: dict[str, Any], looks: dict[str, tuple[str, str]]) -> None:
    height = figure.get_size_inches()[1]
    title, subtitle = _title(summary)
    figure.text(0.02, 1 - 0.32 / height, title, fontsize=12, fontweight="bold")
    figure.text(0.02, 1 - 0.62 / height, subtitle, fontsize=9)
    handles = [
        Line2D([], [], color=looks[name][0], marker=looks[name][1], linestyle="", label=name)
        for name in summary["methods"]
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.012, 1 - 0.72 / height),
        ncols=min(len(handles), 6),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.4,
    )
    figure.text(0.02, 0.12 / height, _footnote(summary), fontsize=7.5, color="#444444", va="bottom")


def _title(summary: dict[str, Any]) -> tuple[str, str]:
    name, recovered = summary["recovered_method"], summary["recovered"]
    gap = f"gap (single − joint, average): {difference(summary['gap'])} points"
    if name is None:
        return "No rule was compared", gap
    if recovered is None:
        surely = (
            "joint is surely better than single"
            if sign(summary["gap"]) < 0
            else "single is not surely better than joint"
        )
        return f"No gap to recover: {surely}", gap
    return f"{name} recovers {gap_recovered(recovered)} of the gap", gap


def _parts(summary: dict[str, Any]) -> str:
    """The rows that the tasks are scored on."""
    found = {entry.get("scored_on", "dev") for entry in summary["tasks"].values()}
    return " and ".join(sorted(found))


def _footnote(summary: dict[str, Any]) -> str:
    parts = []
    for method, cost in summary["cost"].items():
        merged = summary["rules"].get(method, {}).get("merge")  # without training, it has no step
        if method != "joint" and not merged:
            ratios = {"time": cost["relative_step_seconds"], "memory": cost["relative_peak_memory"]}
            known = [f"{times(ratio)} {name}" for name, ratio in ratios.items() if ratio is not None]
            parts.append(f"{method} {', '.join(known) or 'not measured'}")
    seeds = len(summary["seeds"])
    drawn = "1 seed: evaluation rows resampled only" if seeds == 1 else f"{seeds} seeds"
    # Four to a line, so that many rules do not run off the page.
    lines = ["; ".join(parts[start : start + 4]) for start in range(0, len(parts), 4)]
    return "Cost of a step against joint: " + ";\n".join(lines) + f".   {drawn}, {summary['resamples']} resamples."
