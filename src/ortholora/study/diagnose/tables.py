"""The tables of a diagnosis, as text; Markdown and the page show the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ortholora.study.diagnose.blocks import pair_name, pairs_of

NOT_KNOWN = "not determined"
#: Beyond a factor of e^±7, about a thousand, the end of an interval is no number.
_WIDE = 7.0
#: Changes that need more decimals are written with a power of ten.
_MOST_DECIMALS = 5


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
        ["task", "start", "alone", "jointly", "jointly − alone", "share of its own pace", "finding"],
        rows,
        f"Start: before any step; the others: after {found['settings']['steps']} steps on the same rows of the task. ± "
        "one standard error over micro-batches. One training each: other seeds may differ by more than that. Share: "
        "what the task took away of its loss in company, over what it took away alone.",
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
        ["task", *steps, "noise scale, rows"],
        rows,
        "Of all LoRA matrices together, task weights included; in loss per unit of weight. Noise scale: the rows of a "
        "task whose mean gradient is as much noise as signal (tr Σ / ‖g‖²), at the last point.",
    )


def ratio_table(found: dict[str, Any]) -> Shown:
    """The ratio of two tasks' lengths, at all points."""
    rows = [
        [f"{a} : {b}", *(_ratio(point["pairs"][pair_name(a, b)]["log_ratio"]) for point in found["points"])]
        for a, b in pairs_of(found["tasks"])
    ]
    return Shown(
        "Ratio of the two lengths: the first task's over the second's",
        ["pair", *(f"ratio, step {point['step']}" for point in found["points"])],
        rows,
        "1: equally long. With 95 % intervals, of each pair by itself.",
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
        "−1: straight against each other; +1: the same direction. Of all LoRA matrices together, without noise; 95 % "
        "intervals. “Sure” holds for the sign, with a false-discovery rate of 5 % over the pairs. Where the rows do "
        "not determine both lengths there is no cosine. The last two columns: how often one step of the training shows "
        "the sure sign, and how many rows of each task a step needs to show it nine times of ten.",
    )


def transfer_table(found: dict[str, Any]) -> Shown:
    """What a step on one task does to every other."""
    tasks, transfer = found["tasks"], found["transfer"]
    number = _decimals([transfer[a][b]["change"]["error"] for a in tasks for b in tasks])
    rows = [[f"a step on {a}", *(_change(transfer[a][b], number) for b in tasks)] for a in tasks]
    return Shown(
        "Transfer: what one step on a task alone does to each loss",
        ["", *(f"loss of {b}" for b in tasks)],
        rows,
        "Change of the mean loss on rows that the step was not taken on, ± one standard error; less is better. "
        "Predicted: what the gradients say to first order. A step with the mean gradient of half of the rows, by the "
        "training's optimizer as it was, without the momentum of joint steps. “Sure” with a false-discovery rate of "
        "5 % over the table.",
    )


#: All tables, in the order of the files.
TABLES: list[Callable[[dict[str, Any]], Shown | None]] = [
    pace_table,
    size_table,
    ratio_table,
    direction_table,
    transfer_table,
]


def times(ratio: dict[str, float | None]) -> str:
    """A ratio with its interval, from its logarithm; a dash where there is none."""
    value, low, high = (ratio[end] for end in ("value", "low", "high"))
    if value is None or low is None or high is None or not math.isfinite(high - low):
        return "–"
    return f"{math.exp(value):.2g} ({_exp(low)} to {_exp(high)})"


def _exp(value: float) -> str:
    """Of an interval that is very wide its ends say only that."""
    return f"{math.exp(value):.2g}" if abs(value) < _WIDE else "0" if value < 0 else "∞"


def _ratio(ratio: dict[str, Any] | None) -> str:
    return NOT_KNOWN if ratio is None else times(ratio)


def _decimals(errors: Sequence[float]) -> str:
    """One format for numbers that are to be compared, by the smallest of their errors."""
    smallest = min((error for error in errors if error > 0), default=1.0)
    places = max(2, math.ceil(-math.log10(smallest)))
    return f".{places}f" if places <= _MOST_DECIMALS else ".0e"


def _change(entry: dict[str, Any], number: str) -> str:
    change = entry["change"]
    mark = "" if not entry["sure"] else "sure: helps; " if change["value"] < 0 else "sure: hurts; "
    predicted = f"predicted {entry['predicted']:+{number}}"
    return f"{change['value']:+{number}} ± {change['error']:{number}}\n{mark}{predicted}"


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
