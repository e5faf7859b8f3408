"""The layers of a diagnosis, for the page alone, because they may be many: lengths, noise, ratios, cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ortholora.study.diagnose.blocks import pair_name, pairs_of
from ortholora.study.diagnose.tables import NOT_KNOWN, Shown, times
from ortholora.study.report.page import HeatMap

#: Pairs with columns of their own, the surest first.
_MOST_PAIRS = 6


def layer_sizes_table(found: dict[str, Any]) -> Shown:
    """Lengths and noise in all A, all B, and every layer, at the last point."""
    last = found["points"][-1]
    rows = []
    for name, figures, place in _places(last):
        both = [(figures["lengths"][task][place], figures["noise_rows"][task][place]) for task in found["tasks"]]
        rows.append([name, *(_length_and_noise(*cell) for cell in both)])
    rows, more = _known(rows)
    return Shown(
        f"Length of each task's gradient in every layer after step {last['step']}, and its noise scale",
        ["layer", *found["tasks"]],
        rows,
        f"Without noise, task weights included. Below each length its noise scale: the rows whose mean gradient is as "
        f"much noise as signal. –: {NOT_KNOWN} by these rows.{more} The JSON file has every matrix.",
    )


def layer_ratios_table(found: dict[str, Any]) -> Shown:
    """Ratios of two tasks' lengths in all A, all B, and every layer, at the last point."""
    last, pairs = found["points"][-1], surest(found)
    rows = []
    for name, figures, place in _places(last):
        logs = [figures["pairs"][pair_name(*pair)]["log_ratio"] for pair in pairs]
        rows.append([name, *(times({end: values[place] for end, values in own.items()}) for own in logs)])
    rows, more = _known(rows)
    shown = f" of the {len(pairs)} surest pairs" if len(pairs) < len(last["pairs"]) else ""
    return Shown(
        f"Ratio of two tasks' lengths{shown} in every layer after step {last['step']}",
        ["layer", *(f"{a} : {b}" for a, b in pairs)],
        rows,
        "The first task's length over the second's, with 95 % intervals, of each by itself: of many, one in twenty "
        f"misses the truth. –: {NOT_KNOWN}.{more}",
    )


def cosines_map(found: dict[str, Any]) -> HeatMap | None:
    """Cosine pair by layer at the last point, A and B side by side; None where there is not one."""
    last, pairs = found["points"][-1], surest(found)
    matrices, parts = last["matrices"], last["parts"]

    def cells(figures: dict[str, Any], places: dict[str, int]) -> list[tuple[float, bool] | None]:
        return [_cell(figures, pair, places[role]) if role in places else None for pair in pairs for role in "AB"]

    rows = {"all layers": cells(parts, {role: place for place, role in enumerate(parts["blocks"])})}
    rows |= {name: cells(matrices, places) for name, places in _by_layer(matrices["blocks"]).items()}
    layers, rows = len(rows) - 1, {name: row for name, row in rows.items() if any(row)}
    if not rows:
        return None
    unknown = layers - len(rows.keys() - {"all layers"})
    more = f" In {unknown} of {layers} layers no cosine is determined." if unknown else ""
    shown = f"the {len(pairs)} surest pairs" if len(pairs) < len(last["pairs"]) else "every pair"
    caption = (
        f"Cosine of {shown} after step {last['step']}, in hundredths: all layers together, and each; A and B apart. "
        f"Orange: surely against each other; blue: surely the same way; grey: not sure; –: not determined.{more}"
    )
    return HeatMap(caption, {f"{a} · {b}": ["A", "B"] for a, b in pairs}, rows)


def _known(rows: list[list[str]]) -> tuple[list[list[str]], str]:
    """The rows in which something is known; and a sentence about the others."""
    kept = [row for row in rows if any(cell != "–" for cell in row[1:])]
    left = len(rows) - len(kept)
    return kept, f" {left} of {len(rows)} rows are left out, because nothing is determined there." if left else ""


def surest(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs to show where there is no room for all."""
    last = found["points"][-1]["pairs"]
    return sorted(pairs_of(found["tasks"]), key=lambda pair: last[pair_name(*pair)]["p"])[:_MOST_PAIRS]


def _places(point: dict[str, Any]) -> list[tuple[str, dict[str, Any], int]]:
    """Name of each row, and where its figures stand."""
    short = _short(point["layers"]["blocks"])
    return [
        (f"all {block}" if kind == "parts" else short[block], point[kind], place)
        for kind in ("parts", "layers")
        for place, block in enumerate(point[kind]["blocks"])
    ]


def _by_layer(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Short name of a layer → role → place of its matrix."""
    found: dict[str, dict[str, int]] = {}
    for place, name in enumerate(names):
        for role in "AB":
            layer, mark, _ = name.partition(f".lora_{role}.")
            if mark:
                found.setdefault(layer, {})[role] = place
    short = _short(list(found))
    return {short[layer]: places for layer, places in found.items()}


def _short(layers: Sequence[str]) -> dict[str, str]:
    """The names without the parts that all of them begin with."""
    parts = [layer.split(".") for layer in layers]
    same = 0
    while parts and all(len(own) > same + 1 and own[same] == parts[0][same] for own in parts):
        same += 1
    return {layer: ".".join(own[same:]) for layer, own in zip(layers, parts, strict=True)}


def _cell(figures: dict[str, Any], pair: tuple[str, str], place: int) -> tuple[float, bool] | None:
    own = figures["pairs"][pair_name(*pair)]
    value = _number(own["cosine"][place])
    return (value, bool(own["sure"][place])) if np.isfinite(value) else None


def _number(value: float | None) -> float:
    """What is not determined is NaN, in a file None."""
    return math.nan if value is None else float(value)


def _length_and_noise(length: float | None, noise: float | None) -> str:
    own = _number(length)
    return "–" if math.isnan(own) else f"{own:.2g}\n{_number(noise):,.0f} rows"
