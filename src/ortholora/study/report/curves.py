"""The curves of a study as a picture, and in words what they say of each task's gap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ortholora.files import replace_file
from ortholora.study.report.picture import styles
from ortholora.study.report.wording import sign

_COLUMNS = 4
_PANEL_INCHES = (3.4, 2.6)


def curve_sentences(summary: dict[str, Any]) -> list[str]:
    """For every task that is surely better alone: has joint not learned it yet, or does it generalise worse?"""
    sentences = []
    for task, ending in summary["endings"].items():
        if sign(summary["tasks"][task]["gap"]) <= 0:
            continue
        losses = (
            f"its training loss goes from {ending['start']:.3g} to {ending['joint']:.3g}, "
            f"and alone to {ending['single']:.3g}"
        )
        if ending["case"] == "behind":
            sentences.append(
                f"Joint training has not learned {task} yet: {losses}. A rule that balances, a higher learning rate or "
                "more steps may close this gap."
            )
        elif ending["case"] == "learned":
            sentences.append(
                f"Joint training has learned {task}, and generalises worse: {losses}. A rule for gradients is not "
                "likely to help; an adapter of its own, another rank or more regularisation may."
            )
        else:
            sentences.append(f"Whether joint training has learned {task} is not sure: {losses}.")
    return sentences


def has_curves(curves: dict[str, Any]) -> bool:
    """Whether there is anything to draw."""
    return any(methods for tasks in curves.values() for methods in tasks.values())


def draw_curves(summary: dict[str, Any], path: Path) -> None:
    """Draw training losses, and below them the metric where it was measured during the training; a panel a task.

    Args:
        summary: What `summarise` returned.
        path: The PNG file.
    """
    kinds = [kind for kind, tasks in summary["curves"].items() if any(tasks.values())]
    tasks = list(summary["tasks"])
    columns = min(_COLUMNS, len(tasks))
    blocks = -(-len(tasks) // columns)
    figure = Figure(figsize=(_PANEL_INCHES[0] * columns + 1.4, _PANEL_INCHES[1] * blocks * len(kinds) + 0.6), dpi=130)
    FigureCanvasAgg(figure)
    grid = figure.subplots(blocks * len(kinds), columns, squeeze=False)
    looks = styles(list(summary["methods"]))
    for index, task in enumerate(tasks):
        for row, kind in enumerate(kinds):
            axes = grid[(index // columns) * len(kinds) + row][index % columns]
            _panel(axes, kind, task, summary["curves"][kind][task], looks)
    for axes in grid.flat:
        axes.set_visible(bool(axes.lines))
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="center right", frameon=False, fontsize=8)
    figure.text(0.01, 1 - 0.3 / figure.get_size_inches()[1], _title(summary), fontsize=11, weight="bold")
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=0.65 / width, right=1 - 1.45 / width, top=1 - 0.75 / height, bottom=0.5 / height, wspace=0.32, hspace=0.55
    )
    replace_file(path, lambda stream: figure.savefig(stream, format="png"))


def _title(summary: dict[str, Any]) -> str:
    seeds = len(summary["seeds"])
    return "How the tasks learned" + (f": mean and range of {seeds} seeds" if seeds > 1 else ": one seed")


def _panel(axes: Axes, kind: str, task: str, methods: dict[str, Any], looks: dict[str, tuple[str, str]]) -> None:
    factor = 100.0 if kind == "metric" else 1.0
    for method, entry in methods.items():
        low, mean, high = ([factor * value for value in entry[key]] for key in ("low", "mean", "high"))
        colour, marker = looks[method]
        axes.plot(entry["steps"], mean, "-", color=colour, marker=marker, markersize=3, linewidth=1.3, label=method)
        axes.fill_between(entry["steps"], low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_title(task, fontsize=9, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("training loss" if kind == "loss" else "metric, points", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
