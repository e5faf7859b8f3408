"""The tables of a diagnosis, as text; Markdown and the page show the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ortholora.study.diagnose.blocks import pair_name, pairs_of

NOT_KNOWN = "not determined"


@dataclass(frozen=True)
class Shown:
    """A table.

    Attributes:
        caption: What it shows.
        header: Names of the columns.
        rows: Rows of cells.
        note: How to read it.
        left: Number of columns that are aligned left.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    left: int = 1


def pace_table(found: dict[str, Any]) -> Shown | None:
    """Losses alone and jointly; None without steps."""
    if not found["pace"]:
        return None
    words = {
        "still": "stands still in company",
        "behind": "lags in company",
        "level": "no sure lag",
        "ahead": "learns faster in company",
        "unknown": "no sure gain alone",
    }
    rows = []
    for task, entry in found["pace"].items():
        start, own, company = entry["alone"][0], entry["alone"][-1], entry["jointly"][-1]
        share = "–" if entry["share"] is None else f"{100 * entry['share']:.0f} %"
        rows.append(
            [task, _plus(start), _plus(own), _plus(company), _plus(entry["behind"]), share, words[entry["case"]]]
        )
    return Shown(
        "Pace: losses on the held-out rows",
        ["task", "start", "alone", "jointly", "jointly − alone", "share of its own pace", ""],
        rows,
        f"After {found['settings']['steps']} steps on the same rows of the task; ± one standard error over "
        "micro-batches. One training each: other seeds may differ by more than that.",
    )


def size_table(found: dict[str, Any]) -> Shown:
    """Lengths without noise, and the noise."""
    rows = []
    for task in found["tasks"]:
        entries = [point["sizes"][task] for point in found["points"]]
        lengths = [f"{entry['length']:.3g}" if entry["determined"] else NOT_KNOWN for entry in entries]
        noise = entries[-1]["noise_rows"]
        rows.append([task, *lengths, NOT_KNOWN if noise is None else f"{noise:,.0f}"])
    steps = [f"length, step {point['step']}" for point in found["points"]]
    return Shown(
        "Size: length of each task's gradient without noise",
        ["task", *steps, "rows that are as much noise as signal"],
        rows,
        "Of all LoRA matrices together, task weights included. Last column: the noise of one row, tr Σ / ‖g‖², at "
        "the last point.",
    )


def layer_sizes_table(found: dict[str, Any]) -> Shown:
    """Lengths and noise in all A, all B, and every layer, at the last point; for the page alone, because it is long."""
    last = found["points"][-1]
    rows = []
    for kind in ("parts", "layers"):
        figures = last[kind]
        for place, block in enumerate(figures["blocks"]):
            name = f"all {block}" if kind == "parts" else block.rpartition("base_model.model.")[2]
            both = [(float(figures[key][task][place]) for key in ("lengths", "noise_rows")) for task in found["tasks"]]
            rows.append([name, *(_length_and_noise(*cell) for cell in both)])
    return Shown(
        f"Length of each task's gradient in every layer after step {last['step']}, and its noise",
        ["layer", *found["tasks"]],
        rows,
        f"Without noise, task weights included. In brackets the rows that are as much noise as signal. –: {NOT_KNOWN} "
        f"by these rows. The ratios with their intervals are in the JSON file.",
    )


def direction_table(found: dict[str, Any]) -> Shown:
    """Cosines of every pair, at all points."""
    rows = []
    for a, b in pairs_of(found["tasks"]):
        pairs = [point["pairs"][pair_name(a, b)] for point in found["points"]]
        last = pairs[-1]
        right = "–" if last["right_at"] is None else f"{100 * last['right_at'][1]:.0f} %"
        needed = "–" if last["rows_needed"] is None else _rows(last["rows_needed"])
        rows.append([f"{a} · {b}", *(_direction(pair) for pair in pairs), right, needed])
    steps = [f"cosine, step {point['step']}" for point in found["points"]]
    return Shown(
        "Direction: do two tasks pull the same way?",
        ["pair", *steps, "sign right in a step", "rows for 9 of 10"],
        rows,
        "Of all LoRA matrices together, without noise; 95 % intervals. “Sure” holds for the sign, with a "
        "false-discovery rate of 5 % over the pairs. Where the rows do not determine both lengths there is no cosine.",
    )


def transfer_table(found: dict[str, Any]) -> Shown:
    """What a step on one task does to every other."""
    rows = []
    for a in found["tasks"]:
        cells = []
        for b in found["tasks"]:
            entry = found["transfer"][a][b]
            change = entry["change"]
            mark = "" if not entry["sure"] else " sure"
            cells.append(f"{change['value']:+.1e} ± {change['error']:.0e}{mark}\n(predicted {entry['predicted']:+.1e})")
        rows.append([f"a step on {a}", *cells])
    return Shown(
        "Transfer: what one step on a task alone does to each loss",
        ["", *found["tasks"]],
        rows,
        "Change of the mean loss on rows that the step was not taken on; negative helps. In brackets what the "
        "gradients predict to first order. A step with the mean gradient of half of the rows, by the training's "
        "optimizer as it was, without the momentum of joint steps.",
    )


#: All tables, in the order of the files.
TABLES: list[Callable[[dict[str, Any]], Shown | None]] = [pace_table, size_table, direction_table, transfer_table]


def _length_and_noise(length: float, noise: float) -> str:
    return "–" if math.isnan(length) else f"{length:.2g} ({noise:,.0f})"


def _plus(entry: dict[str, float]) -> str:
    return f"{entry['value']:.3f} ± {entry['error']:.3f}"


def _rows(number: float) -> str:
    return f"{math.ceil(number):,}" if math.isfinite(number) else "no number"


def _direction(pair: dict[str, Any]) -> str:
    sure = ("sure: against" if pair["product"]["value"] < 0 else "sure: together") if pair["sure"] else "not sure"
    cosine = pair["cosine"]
    if cosine is None:
        return f"{NOT_KNOWN}\n{sure}"
    return f"{cosine['value']:+.2f} ({cosine['low']:+.2f} to {cosine['high']:+.2f})\n{sure}"
