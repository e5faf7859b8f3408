"""A diagnosis as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ortholora.study.diagnose.blocks import pair_name, pairs_of
from ortholora.study.diagnose.tables import (
    Shown,
    direction_table,
    layer_sizes_table,
    pace_table,
    size_table,
    transfer_table,
)
from ortholora.study.report.page import (
    Cell,
    Commands,
    Folded,
    HeatMap,
    Key,
    Page,
    Panel,
    Panels,
    Paragraph,
    Section,
    Sentences,
    Table,
)
from ortholora.study.report.page.parts import Part
from ortholora.study.report.page.picture import COLOURS, svg

#: Pairs with columns of their own in the map of the layers, the surest first.
_MOST_PAIRS = 6
CAUTION = (
    "Hardly tested against outcomes yet: so far on the pairs of a few small studies (docs/diagnose.md, “How far it can "
    "be trusted”). How often such a verdict is borne out by full training is not known. Take it for what to try first."
)


def page_of(found: dict[str, Any]) -> Page:
    """Lay out a diagnosis."""
    settings, origin = found["settings"], found["provenance"]
    pace = pace_table(found)
    sections = [
        Section("The verdict", [Sentences(found["verdict"]), Paragraph("Next:"), Commands([found["next"]])]),
        *([Section("Pace", [_pace_panels(found["pace"]), *_table(pace)], "Who lags in company?")] if pace else []),
        Section(
            "Size",
            [*_table(size_table(found)), Folded("Every layer", _table(layer_sizes_table(found)))],
            "Whose gradient decides the step?",
        ),
        Section(
            "Direction",
            [*_table(direction_table(found)), _map(found), Folded("Every matrix", [_matrices(found)])],
            "Do two tasks pull the same way? What is not sure is grey.",
        ),
        Section("Transfer", _table(transfer_table(found)), "What one step on a task does to all."),
        Section("Settings", [Folded("What was measured, and with which settings", [_settings(settings, origin)])]),
    ]
    lead = f"{len(found['tasks'])} tasks, {settings['steps']} steps, {settings['count'] * settings['rows']} rows each"
    footer = f"ortholora {origin['versions']['ortholora']}, commit {origin['commit'] or 'unknown'}, {origin['date']}"
    return Page("Will the tasks get along?", f"{lead}.", sections, footer, [CAUTION])


def _table(shown: Shown) -> list[Part]:
    parts: list[Part] = [
        Table(shown.header, [[row[0], *map(Cell, row[1:])] for row in shown.rows], shown.caption, shown.left)
    ]
    return [*parts, Paragraph(shown.note, muted=True)] if shown.note else parts


def _pace_panels(pace: dict[str, Any]) -> Panels:
    panels = []
    for number, (task, entry) in enumerate(pace.items()):
        ends = [entry[how][-1]["value"] for how in ("alone", "jointly")]
        alt = f"Loss of {task} on held-out rows: from {entry['alone'][0]['value']:.3f} to {ends[0]:.3f} alone, "
        panels.append(Panel(svg(_draw(entry), f"pace-{number}"), alt + f"{ends[1]:.3f} jointly.", task))
    keys = [Key("●", "single", "alone"), Key("■", "joint", "jointly")]
    return Panels(
        panels, keys, "Mean loss on the held-out rows over the steps; bars: 95 % intervals over micro-batches."
    )


def _draw(entry: dict[str, Any]) -> Any:
    def draw(axes: Axes) -> None:
        for how, colour, mark in (("alone", "single", "o"), ("jointly", "joint", "s")):
            values = [point["value"] for point in entry[how]]
            reach = [point["high"] - point["value"] for point in entry[how]]
            axes.errorbar(
                entry["steps"], values, yerr=reach, color=COLOURS[colour], marker=mark, markersize=4, linewidth=1.2
            )
        axes.set_xlabel("step")
        axes.set_ylabel("loss")

    return draw


def _map(found: dict[str, Any]) -> Part:
    """Cosine pair by layer at the last point, A and B side by side; a sentence where there is none to show."""
    last = found["points"][-1]
    pairs = sorted(pairs_of(found["tasks"]), key=lambda pair: last["pairs"][pair_name(*pair)]["p"])[:_MOST_PAIRS]
    matrices = last["matrices"]
    layers = _by_layer(matrices["blocks"])
    rows: dict[str, Sequence[tuple[float, bool] | None]] = {
        name: [
            None if (place := places.get(role)) is None else _cell(matrices["pairs"][pair_name(*pair)], place)
            for pair in pairs
            for role in "AB"
        ]
        for name, places in layers.items()
    }
    if not any(cell for cells in rows.values() for cell in cells):
        return Paragraph("In no single layer do these rows determine a cosine; more --rows would tell more.")
    shown = "the surest pairs" if len(pairs) < len(last["pairs"]) else "every pair"
    return HeatMap(
        f"Cosine of {shown} in every layer after step {last['step']}, in hundredths, A and B apart",
        {f"{a} · {b}": ["A", "B"] for a, b in pairs},
        rows,
    )


def _by_layer(names: list[str]) -> dict[str, dict[str, int]]:
    """Short name of a layer → role → place of its matrix."""
    found: dict[str, dict[str, int]] = {}
    for place, name in enumerate(names):
        for role in "AB":
            layer, mark, _ = name.partition(f".lora_{role}.")
            if mark:
                found.setdefault(layer.rpartition("base_model.model.")[2] or layer, {})[role] = place
    return found


def _cell(pair: dict[str, Any], place: int) -> tuple[float, bool] | None:
    value = float(pair["cosine"][place])
    return (value, bool(pair["sure"][place])) if np.isfinite(value) else None


def _matrices(found: dict[str, Any]) -> Table:
    """How many matrices are sure, at each point."""
    rows = []
    for a, b in pairs_of(found["tasks"]):
        for point in found["points"]:
            for kind in ("parts", "layers", "matrices"):
                own = point[kind]["pairs"][pair_name(a, b)]
                sure, sign = np.asarray(own["sure"], dtype=bool), np.asarray(own["sign"])
                against, together = int((sure & (sign < 0)).sum()), int((sure & (sign > 0)).sum())
                name = {"parts": "A, B", "layers": "layers", "matrices": "matrices"}[kind]
                count = len(sure)
                rows.append([f"{a} · {b}", str(point["step"]), name, *map(str, (against, together, count))])
    header = ["pair", "step", "blocks", "surely against", "surely together", "of"]
    return Table(header, rows, "Blocks whose sign is sure (false-discovery rate 5 %)", left=3)


def _settings(settings: dict[str, Any], origin: dict[str, Any]) -> Table:
    values = {**settings, "backbone": origin["config"]["backbone"], "hardware": origin["hardware"].get("cpu")}
    values |= origin["versions"]
    return Table(["setting", "value"], [[str(key), str(value)] for key, value in values.items()], left=2)
