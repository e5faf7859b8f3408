"""The pictures of a study's page: intervals, values of a sweep, curves, and how conflicts changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from ortholora.study.report.page import Key, Panel, Panels
from ortholora.study.report.page.picture import COLOURS, PANEL, short, svg
from ortholora.study.report.wording import difference, points, sign
from ortholora.study.statistics.atlas import Line
from ortholora.study.sweep.values import has, value_at

#: Colour and mark of a method, by its place in the study: single, joint, then the others.
_FIXED = {"single": ("single", "s", "■"), "joint": ("joint", "o", "●")}
_OTHERS = (
    ("rule-1", "D", "◆"),
    ("rule-2", "^", "▲"),
    ("rule-3", "v", "▼"),
    ("rule-4", "P", "✚"),
    ("rule-5", "X", "✖"),
)
_LOOKS = (*_FIXED.values(), *_OTHERS)
#: Values further apart than this are shown on a logarithmic axis.
_WIDE = 5.0

Look = tuple[str, str, str]


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Colour, marker and character of each method, the same in every picture of a page."""
    others = [method for method in methods if method not in _FIXED]
    own = {method: _OTHERS[index % len(_OTHERS)] for index, method in enumerate(others)}
    return {method: _FIXED.get(method) or own[method] for method in methods}


def keys(methods: Sequence[str], shown: Sequence[str] | None = None) -> list[Key]:
    """The legend."""
    found = looks(methods)
    return [Key(found[name][2], found[name][0], name) for name in shown or methods]


def intervals(entries: Mapping[str, Mapping[str, dict[str, Any]]], methods: Sequence[str], unit: str) -> list[Panel]:
    """A panel for each difference, with its interval in each row; all on one scale.

    Args:
        entries: Method → row → a difference (`mean`, `ci95`).
        methods: All methods of the study.
        unit: What is below the axis.
    """
    found = looks(methods)
    every = [100 * b for rows in entries.values() for entry in rows.values() for b in (*entry["ci95"], entry["mean"])]
    low, high = min([*every, 0.0]), max([*every, 0.0])
    room = 0.04 * (high - low) or 0.5
    panels = []
    for number, (method, rows) in enumerate(entries.items()):

        def draw(axes: Axes, method: str = method, rows: Mapping[str, dict[str, Any]] = rows) -> None:
            _draw_intervals(axes, rows, found[method], (low - room, high + room), unit)

        words = "; ".join(f"{row} {difference(entry)}" for row, entry in rows.items())
        what = "single − joint: the gap" if method == "single" else f"{method} − joint"
        picture = svg(draw, f"interval-{number}", (PANEL[0], 0.65 + 0.24 * len(rows)))
        panels.append(Panel(picture, f"{what}, {unit}, with 95 % intervals: {words}.", what))
    return panels


def _draw_intervals(
    axes: Axes, rows: Mapping[str, dict[str, Any]], look: Look, limits: tuple[float, float], unit: str
) -> None:
    colour, marker, _ = look
    for place, entry in enumerate(rows.values()):
        ends = [100 * bound for bound in entry["ci95"]]
        axes.plot(ends, [place, place], "-", color=COLOURS[colour], linewidth=1.8, solid_capstyle="round")
        face = COLOURS[colour] if sign(entry) else COLOURS["paper"]
        axes.plot(100 * entry["mean"], place, marker, markersize=5.5, mfc=face, mec=COLOURS[colour], mew=1.3)
    axes.axvline(0, color=COLOURS["joint"], linewidth=1.2, zorder=1)
    axes.set_yticks(range(len(rows)), [short(row, 16) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(*limits)
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")


def recovered(summary: dict[str, Any]) -> Panel | None:
    """How much of the gap every method recovers; None where there is no gap."""
    rows = {name: rule["recovered"] for name, rule in summary["rules"].items() if rule["recovered"] is not None}
    if not rows:
        return None
    found = looks(list(summary["methods"]))

    def draw(axes: Axes) -> None:
        for place, (name, entry) in enumerate(rows.items()):
            colour, marker, _ = found[name]
            ends = [100 * bound for bound in entry["ci95"]]
            axes.plot(ends, [place, place], "-", color=COLOURS[colour], linewidth=1.8, solid_capstyle="round")
            axes.plot(100 * entry["mean"], place, marker, markersize=5.5, color=COLOURS[colour])
        for at, name in ((0, "joint"), (100, "single")):
            axes.axvline(at, color=COLOURS[found[name][0]], linewidth=1.2, zorder=1)
            axes.annotate(name, (at, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                          ha="center", color=COLOURS["muted"], fontsize=7.5)  # fmt: skip
        axes.set_yticks(range(len(rows)), [short(name, 16) for name in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("share of the gap recovered, %")
        axes.grid(visible=False, axis="y")

    words = "; ".join(
        f"{n} {100 * e['mean']:.0f} % [{100 * e['ci95'][0]:.0f}, {100 * e['ci95'][1]:.0f}]" for n, e in rows.items()
    )
    picture = svg(draw, "recovered", (PANEL[0], 0.85 + 0.24 * len(rows)))
    return Panel(picture, f"Share of the gap recovered, with 95 % intervals: {words}.", "Share of the gap recovered")


def sweep_panels(sweep: dict[str, Any], methods: Sequence[str]) -> list[Panel]:
    """Mean metric of every method over each swept key (of several: the best over the others)."""
    found = {name: look for name, look in looks(methods).items() if name in sweep["methods"]}
    panels: list[Panel] = []
    for number, (key, listed) in enumerate(sweep["values"].items()):
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in listed)
        places = [float(value) if numbers else float(index) for index, value in enumerate(listed)]
        # A merge has settings of its own, and those who train have no say in them.
        having = [m for m in found if has(sweep["methods"][m]["scores"][0]["settings"], key)]
        best = {m: [_best_at(sweep["methods"][m], key, value) for value in listed] for m in having}

        def draw(axes: Axes, key: str = key, listed: Any = listed, places: Any = places, best: Any = best) -> None:
            for method, values in best.items():
                colour, marker, _ = found[method]
                there = [(x, 100 * y) for x, y in zip(places, values, strict=True) if y is not None]
                axes.plot(*_columns(there), "-", color=COLOURS[colour], marker=marker, markersize=3.5, linewidth=1.2)
                chosen = [value_at(settings, key) for settings in sweep["methods"][method]["chosen"].values()]
                given = {x for x, value in zip(places, listed, strict=True) if value in chosen}
                large = [(x, y) for x, y in there if x in given]
                axes.plot(*_columns(large), marker, color=COLOURS[colour], markersize=8, mec=COLOURS["paper"])
            if min(places) > 0 and max(places) / min(places) >= _WIDE / 2:
                axes.set_xscale("log")
            axes.set_xticks(places, [f"{v:g}" if isinstance(v, float) else str(v) for v in listed])
            axes.minorticks_off()
            axes.set_xlabel(key)
            axes.set_ylabel("mean metric, points")

        words = "; ".join(
            f"{m}: "
            + ", ".join(f"{'none' if v is None else points(v, 1)} at {x}" for x, v in zip(listed, vs, strict=True))
            for m, vs in best.items()
        )
        panels.append(Panel(svg(draw, f"sweep-{number}"), f"Mean metric over {key}. {words}.", f"Metric over {key}"))
    return panels


def _best_at(entry: dict[str, Any], key: str, value: Any) -> float | None:
    found = [
        s["average"] for s in entry["scores"] if value_at(s["settings"], key) == value and s["average"] is not None
    ]
    return max(found, default=None)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def curve_panels(curves: dict[str, Any], methods: Sequence[str]) -> list[Panel]:
    """Training loss of every task, and beside it its metric where that was measured meanwhile."""
    found = looks(methods)
    panels: list[Panel] = []
    for task in curves["loss"]:
        for kind, label, factor in (("loss", "training loss", 1.0), ("metric", "dev metric, points", 100.0)):
            entries = curves.get(kind, {}).get(task, {})
            if not entries:
                continue
            lines = {
                method: Line(entry["steps"], *([factor * v for v in entry[key]] for key in ("mean", "low", "high")))
                for method, entry in entries.items()
            }

            def draw(axes: Axes, lines: dict[str, Line] = lines, label: str = label) -> None:
                for method, line in lines.items():
                    _draw_line(axes, line, found[method])
                axes.set_xlabel("step")
                axes.set_ylabel(label)

            words = "; ".join(f"{method} {line.mean[0]:.3g} → {line.mean[-1]:.3g}" for method, line in lines.items())
            alt = f"{label} of {task} over the steps, mean and range over seeds, from first to last: {words}."
            panels.append(Panel(svg(draw, f"curve-{len(panels)}"), alt, f"{task}: {label.partition(',')[0]}"))
    return panels


def _draw_line(axes: Axes, line: Line, look: Look, every: int | None = None) -> None:
    colour, marker, _ = look
    every = every or max(1, len(line.steps) // 8)
    axes.plot(line.steps, line.mean, "-", color=COLOURS[colour], marker=marker, markersize=3.5, linewidth=1.3,
              markevery=every)  # fmt: skip
    if line.low != line.high:
        axes.fill_between(line.steps, line.low, line.high, color=COLOURS[colour], alpha=0.15, linewidth=0)


def size_panels(lines: Mapping[str, Line], caption: str = "") -> Panels:
    """The size of every task's gradient over the steps, seven tasks to a panel."""
    names = list(lines)
    groups = [names[start : start + len(_LOOKS)] for start in range(0, len(names), len(_LOOKS))]
    panels, legend = [], []
    for number, group in enumerate(groups):

        def draw(axes: Axes, group: list[str] = group) -> None:
            for look, name in zip(_LOOKS, group, strict=False):
                _draw_line(axes, lines[name], look)
            axes.axhline(1, color=COLOURS["muted"], linewidth=0.8)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_xlabel("step")
            axes.set_ylabel("size against the mean task")

        words = "; ".join(f"{name} {lines[name].mean[0]:.2g} → {lines[name].mean[-1]:.2g}" for name in group)
        alt = f"Length of each task's gradient over the geometric mean of all tasks, from first to last: {words}."
        title = "Size of each task's gradient" + (f", {number + 1} of {len(groups)}" if len(groups) > 1 else "")
        panels.append(Panel(svg(draw, f"size-{number}"), alt, title))
        prefix = f"{number + 1}: " if len(groups) > 1 else ""
        legend += [Key(look[2], look[0], prefix + name) for look, name in zip(_LOOKS, group, strict=False)]
    return Panels(panels, legend, caption)


def cosine_panels(lines: Mapping[str, Line]) -> list[Panel]:
    """The cosine of pairs over the steps, a panel each, on one scale."""
    ends = [abs(value) for line in lines.values() for value in (*line.low, *line.high)]
    reach = 1.08 * max(ends, default=1.0) or 1.0
    panels = []
    for number, (name, line) in enumerate(lines.items()):

        def draw(axes: Axes, line: Line = line) -> None:
            _draw_line(axes, line, ("ink", "o", "●"))
            axes.axhline(0, color=COLOURS["joint"], linewidth=1)
            axes.set_ylim(-reach, reach)
            axes.set_xlabel("step")
            axes.set_ylabel("cosine in single steps")

        alt = f"Mean cosine of {name} over the steps: from {line.mean[0]:+.2f} to {line.mean[-1]:+.2f}."
        panels.append(Panel(svg(draw, f"cosine-{number}", (PANEL[0], 2.0)), alt, name))
    return panels
