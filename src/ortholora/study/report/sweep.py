"""What a sweep chose: a table of the scores for the report, and a picture of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ortholora.files import replace_file
from ortholora.study.report.picture import styles
from ortholora.study.sweep.values import has, value_at

#: Values further apart than this are shown on a logarithmic axis.
_WIDE = 5.0
#: How the keys begin that merges alone have.
_OF_MERGES = "study.merge."
_PANEL_INCHES = 5.2


def sweep_lines(sweep: dict[str, Any]) -> list[str]:
    """The sweep in sentences: what was tried and what each method got."""
    rows, seeds = sweep["rows"], ", ".join(map(str, sweep["seeds"]))
    tried = {key: f"{key}: {', '.join(map(str, values))}" for key, values in sweep["values"].items()}
    of_merges = [text for key, text in tried.items() if key.startswith(_OF_MERGES)]
    lines = [
        f"Tried for every method{' that trains' if of_merges else ''} alike: "
        f"{'; '.join(text for key, text in tried.items() if not key.startswith(_OF_MERGES))}.",
        *(
            [f"Tried for the merges, of the single adapters that were chosen: {'; '.join(of_merges)}."]
            * bool(of_merges)
        ),
        f"Chosen on up to {rows} training rows of each task (seed {seeds}), which no run of the study trained on or is "
        "scored on. `single` chooses for each task by itself, a method with groups for each group, every other "
        "method by the mean over tasks.",
    ]
    for key, values in sweep["values"].items():
        if len(values) == 2 and _are_numbers(values):
            lines.append(f"{key} has two values only, so that every choice is an end: a wider list may serve better.")
    for method, entry in sweep["methods"].items():
        for name, settings in entry["chosen"].items():
            if edges := _at_the_edge(settings, sweep["values"]):
                who = method if name == "average" else f"{method} on {name}"
                found = " and ".join(f"{key} = {settings[key]}" for key in edges)
                lines.append(f"{who} chose the end of its list ({found}): a wider list may serve it better.")
    return lines


def sweep_table(sweep: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for every combination, a column for every method; the choice in bold."""
    methods = list(sweep["methods"])
    listed = [score["settings"] for entry in sweep["methods"].values() for score in entry["scores"]]
    combinations = [settings for index, settings in enumerate(listed) if settings not in listed[:index]]
    rows = []
    for settings in combinations:
        cells = [_cell(sweep["methods"][method], settings) for method in methods]
        rows.append([", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items()), *cells])
    return ["mean metric on the cut rows", *methods], rows


def _cell(entry: dict[str, Any], settings: dict[str, Any]) -> str:
    score = next((score for score in entry["scores"] if score["settings"] == settings), None)
    if score is None:
        return "–"  # not one of its settings
    if score["average"] is None:
        failed = [task for task, value in score["tasks"].items() if value is None]
        return "not finite" if len(failed) == len(score["tasks"]) else f"not finite on {', '.join(failed)}"
    text = f"{100 * score['average']:.2f}"
    chosen = entry["chosen"]
    if "average" in chosen:
        return f"**{text}**" if chosen["average"] == score["settings"] else text
    tasks = [task for task, settings in chosen.items() if settings == score["settings"]]
    return f"{text} (**{', '.join(tasks)}**)" if tasks else text


def _at_the_edge(settings: dict[str, Any], values: dict[str, list[Any]]) -> list[str]:
    """Keys whose chosen value is the smallest or the largest of three numbers or more."""
    found = []
    for key, listed in values.items():
        if key in settings and len(listed) > 2 and _are_numbers(listed) and settings[key] in (min(listed), max(listed)):
            found.append(key)
    return found


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def draw_sweep(sweep: dict[str, Any], path: Path) -> None:
    """Draw the mean metric of every method over each swept key (of several: the best over the others)."""
    keys = list(sweep["values"])
    figure = Figure(figsize=(_PANEL_INCHES * len(keys) + 1.6, 3.8), dpi=150)
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        _panel(axes, sweep, key)
    found = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    handles = {label: handle for pairs in found for handle, label in pairs}
    figure.legend(handles.values(), handles, loc="center right", frameon=False, fontsize=9)
    figure.text(
        0.02, 0.95, "Every method at every value: large marks are what it was given", fontsize=11, weight="bold"
    )
    figure.subplots_adjust(left=0.1, right=1 - 1.5 / figure.get_size_inches()[0], top=0.86, bottom=0.16, wspace=0.3)
    replace_file(path, lambda stream: figure.savefig(stream, format="png"))


def _panel(axes: Axes, sweep: dict[str, Any], key: str) -> None:
    listed = sweep["values"][key]
    numbers = _are_numbers(listed)
    places = [float(value) if numbers else float(index) for index, value in enumerate(listed)]
    for method, (colour, marker) in styles(list(sweep["methods"])).items():
        entry = sweep["methods"].get(method)
        if entry is None or not has(entry["scores"][0]["settings"], key):
            continue
        best = [_best_at(entry, key, value) for value in listed]
        shown = [(x, 100 * y) for x, y in zip(places, best, strict=True) if y is not None]
        xs, ys = [x for x, _ in shown], [y for _, y in shown]  # empty where no value worked on every task
        axes.plot(xs, ys, "-", color=colour, marker=marker, markersize=4, linewidth=1.2, label=method)
        chosen = [value_at(settings, key) for settings in entry["chosen"].values()]
        large = [(x, 100 * y) for x, y, v in zip(places, best, listed, strict=True) if v in chosen and y is not None]
        xs, ys = [x for x, _ in large], [y for _, y in large]
        axes.plot(xs, ys, marker, color=colour, markersize=10, mec="white", linestyle="")
    if numbers and min(places) > 0 and max(places) / min(places) > _WIDE:
        axes.set_xscale("log")
    axes.set_xticks(places, [str(value) for value in listed], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(key, fontsize=9)
    axes.set_ylabel("mean metric on the cut rows, points", fontsize=9)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _best_at(entry: dict[str, Any], key: str, value: Any) -> float | None:
    there = [s for s in entry["scores"] if has(s["settings"], key) and s["average"] is not None]
    return max((s["average"] for s in there if value_at(s["settings"], key) == value), default=None)
