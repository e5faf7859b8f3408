"""The ledger as a picture: in each study what single training and every rule gain on joint training, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

#: Okabe and Ito's colours, told apart by colour-blind readers; the markers differ too. The order is that of the rows.
LOOKS = {
    "single": ("#0072B2", "s"),
    "plateau": ("#D55E00", "D"),
    "gradnorm": ("#E69F00", "P"),
    "balanced": ("#009E73", "^"),
    "ortho": ("#CC79A7", "v"),
    "joint-wide": ("#56B4E9", "X"),
}
#: Inches: the picture's width, the line of a method, and what is above and below the axes.
_WIDTH, _LINE, _ABOVE, _BELOW = 8.0, 0.17, 0.55, 0.55


def draw(summaries: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Draw the studies to a PNG file.

    Args:
        summaries: Name of a study → its summary.
        path: The file.
    """
    rows = [_differences(summary) for summary in summaries.values()]
    heights = [_LINE * (len(row) + 1.5) for row in rows]
    height = _ABOVE + sum(heights) + _BELOW
    figure = Figure(figsize=(_WIDTH, height), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.16, _BELOW / height, 0.81, sum(heights) / height))
    top, ticks = 0.0, []
    for row, size in zip(rows, heights, strict=True):
        for line, (method, entry) in enumerate(row.items(), start=1):
            _mark(axes, top + line * _LINE, method, entry)
        ticks.append(top + size / 2)
        top += size
        axes.axhline(top, color="#DDDDDD", linewidth=0.8)
    axes.axvline(0, color="#595959", linewidth=1.2)
    axes.set_ylim(top, 0)
    axes.set_yticks(ticks, list(summaries))
    axes.tick_params(left=False)
    axes.set_xlabel("points gained on joint training, mean over tasks (0: joint; 95 % intervals over seeds and rows)")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _legend(figure, [method for method in LOOKS if any(method in row for row in rows)])
    figure.savefig(path, format="png")


def _differences(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Method → its difference to joint training, in the order of `LOOKS`."""
    found = {"single": summary["gap"], **{name: rule["difference"] for name, rule in summary["rules"].items()}}
    return {method: found[method] for method in LOOKS if method in found}


def _mark(axes: Any, y: float, method: str, entry: dict[str, Any]) -> None:
    """An interval; the mark is filled where it does not hold zero."""
    colour, marker = LOOKS[method]
    low, high = (100 * end for end in entry["ci95"])
    axes.plot([low, high], [y, y], "-", color=colour, linewidth=1.6, solid_capstyle="round")
    face = colour if low > 0 or high < 0 else "white"
    axes.plot(100 * entry["mean"], y, marker, markersize=6, mfc=face, mec=colour, mew=1.3)


def _legend(figure: Figure, methods: list[str]) -> None:
    shown = {"single": "an adapter for each task"}
    handles = [
        Line2D([], [], color=LOOKS[method][0], marker=LOOKS[method][1], label=shown.get(method, method))
        for method in methods
    ]
    figure.legend(handles=handles, loc="upper center", ncols=min(4, len(handles)), frameon=False, fontsize=9)
