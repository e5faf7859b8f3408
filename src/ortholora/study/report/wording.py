"""How numbers are written in the report, the table, the picture and the sentences: one way everywhere.

Metrics are fractions inside and points (hundredths) outside; a difference has a sign and two decimals. The
percent sign is kept for one thing, the gap recovered (and the 95 % of an interval).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def points(value: float, decimals: int = 2) -> str:
    """Write a metric: `0.8512` → `85.12`."""
    return _no_minus_zero(f"{100 * value:.{decimals}f}")


def signed_points(value: float) -> str:
    """Write a difference of metrics: `0.0123` → `+1.23`."""
    text = _no_minus_zero(f"{100 * value:.2f}")
    return text if text.startswith("-") else f"+{text}"


def mean_std(entry: dict[str, Any], decimals: int = 2) -> str:
    """Write a mean with the standard deviation over seeds; with one seed the mean alone."""
    mean = points(entry["mean"], decimals)
    return mean if entry["std"] is None else f"{mean} ± {points(entry['std'], decimals)}"


def bounds(ci95: Sequence[float]) -> str:
    """Write the interval of a difference of metrics: `[-0.40, +2.10]`."""
    return f"[{signed_points(ci95[0])}, {signed_points(ci95[1])}]"


def difference(entry: dict[str, Any]) -> str:
    """Write a difference with its interval: `+1.23 [-0.40, +2.10]`."""
    return f"{signed_points(entry['mean'])} {bounds(entry['ci95'])}"


def gap_recovered(recovered: dict[str, Any]) -> str:
    """Write how much of the gap was recovered: `63 % (95 % interval [20 %, 110 %])`."""
    mean, low, high = (_no_minus_zero(f"{100 * v:.0f}") for v in (recovered["mean"], *recovered["ci95"]))
    return f"{mean} % (95 % interval [{low} %, {high} %])"


def times(value: float | None) -> str:
    """Write a ratio of costs: `1.03 ×`; a dash where it is not known."""
    return "–" if value is None else f"{value:.2f} ×"


def sign(entry: dict[str, Any]) -> int:
    """Return 1 or -1 where the interval lies wholly above or below zero (a sure difference), else 0.

    As it is written, to a hundredth of a point: a smaller difference may be certain, but it is none to speak of.
    """
    low, high = (round(100 * bound, 2) for bound in entry["ci95"])
    return int(low > 0) - int(high < 0)


def listed(names: Sequence[str]) -> str:
    """Join names: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _no_minus_zero(text: str) -> str:
    return text.removeprefix("-") if not text.strip("-0.") else text


def beside(cost: dict[str, Any]) -> str:
    """Mark times that were measured while other runs shared the machine."""
    jobs = cost.get("jobs", 1)
    return f" ({jobs} at once)" if jobs > 1 else ""
