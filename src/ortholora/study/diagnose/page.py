"""A diagnosis as a page."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ortholora.study.diagnose.blocks import pair_name, pairs_of
from ortholora.study.diagnose.layers import cosines_map, layer_ratios_table, layer_sizes_table
from ortholora.study.diagnose.tables import (
    Shown,
    direction_table,
    pace_table,
    ratio_table,
    size_table,
    transfer_table,
)
from ortholora.study.report.page import (
    Cell,
    Commands,
    Folded,
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
from ortholora.study.report.repeat import provenance_parts
from ortholora.study.report.wording import listed

#: Rows of the map of the layers that are shown without being asked for.
_MOST_ROWS = 40
CAUTION = (
    "Hardly tested against outcomes yet: so far on the pairs of a few small studies (docs/diagnose.md, “How far it can "
    "be trusted”). How often such a verdict is borne out by full training is not known. Take it for what to try first."
)


def page_of(found: dict[str, Any]) -> Page:
    """Lay out a diagnosis."""
    origin = found["provenance"]
    pace = pace_table(found)
    by_layer = Folded("Every layer", [*_table(layer_sizes_table(found)), *_table(layer_ratios_table(found))])
    sections = [
        Section("The verdict", [Sentences(found["verdict"]), Paragraph("To decide it:"), Commands([found["next"]])]),
        *([Section("Pace", [_pace_panels(found["pace"]), *_table(pace)], "Who lags in company?")] if pace else []),
        Section(
            "Size",
            [*_table(size_table(found)), *_table(ratio_table(found)), by_layer],
            "Whose gradient decides the step? The longest gradient has most of the say in a joint step.",
        ),
        Section(
            "Direction",
            [*_table(direction_table(found)), _layers(found), Folded("How many blocks are sure", [_matrices(found)])],
            "Do two tasks pull the same way? A step that helps one hurts the other where they pull against each other.",
        ),
        Section("Transfer", _table(transfer_table(found)), "What one step on a task does to the loss of each."),
        Section("How to repeat this", [Commands([found["again"]]), _measured(found), *provenance_parts(origin)]),
    ]
    footer = f"ortholora {origin['versions']['ortholora']}, commit {origin['commit'] or 'unknown'}, {origin['date']}"
    return Page("Will the tasks get along?", found["headline"], sections, footer, [CAUTION], _context(found))


def _context(found: dict[str, Any]) -> str:
    """What was measured, in a line."""
    settings = found["settings"]
    steps = f"{settings['steps']} steps" if settings["steps"] else "the start as it is"
    rows = f"measured on {settings['count'] * settings['rows']} rows of each"
    backbone = str(found["provenance"]["config"]["backbone"])
    return " · ".join(["Ortho-LoRA diagnosis", f"{len(found['tasks'])} tasks", steps, rows, backbone])


def _measured(found: dict[str, Any]) -> Paragraph:
    """On what, and when."""
    settings = found["settings"]
    steps = listed([str(point["step"]) for point in found["points"]])
    quota = listed([f"{rows} of {task}" for task, rows in settings["quota"].items()])
    return Paragraph(
        f"Measured after step {steps}, on {settings['count']} micro-batches of {settings['rows']} rows of each task, "
        f"not trained on. A step of the training has these rows: {quota}.",
        muted=True,
    )


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


def _layers(found: dict[str, Any]) -> Part:
    """The map of the layers, on request where it is long; a sentence where there is nothing to show."""
    shown = cosines_map(found)
    if shown is None:
        return Paragraph("In no single layer do these rows determine a cosine; more `--rows` may tell.")
    return shown if len(shown.rows) <= _MOST_ROWS else Folded("Cosines, layer by layer", [shown])


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
