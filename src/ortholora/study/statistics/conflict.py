"""The conflicts of a study: what the runs of one method saw, over their seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ortholora.runs.record import RunRecord
from ortholora.trainers.conflicts import relation


def summarise_conflict(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Merge the conflict reports of one method's runs.

    Args:
        records: The runs of one method: one a seed, or one for each group of tasks and seed.

    Returns:
        `pairs`: for every pair `a~b` the mean whole-vector `cosine` over steps and seeds, its
        `standard_error` (the larger of that from within runs and that from the spread over seeds), the `negative_share`
        and a `verdict` (`conflict`, `agreement`, `unsure`); `removed`: mean share of the summed gradient that
        the rule took away. None where no run captured.
    """
    seen = [(record.seed, record.conflict) for record in records if record.conflict]
    # A run of one task has no pair, and its rule nothing to take away.
    seen = [(seed, report) for seed, report in seen if report["pairs"]] or seen
    reports = [report for _, report in seen]
    if not reports:
        return None
    # A pair is in every run that trained both of its tasks; a pair of two groups is in none.
    parts: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for name, figures in report["pairs"].items():
            parts.setdefault(name, []).append(figures)
    seeds = {seed for seed, _ in seen}
    return {
        "removed": sum(report["removed"] for report in reports) / len(reports),
        "pairs": {name: _merge(found) for name, found in parts.items() if len(found) == len(seeds)},
    }


def conflict_sentences(conflict: dict[str, Any] | None) -> list[str]:
    """Say which pairs surely conflict, and how noisy the signs were."""
    if conflict is None or not conflict["pairs"]:
        return []
    pairs = conflict["pairs"]
    sure = {word: [_pair(n, p) for n, p in pairs.items() if p["verdict"] == word] for word in ("conflict", "agreement")}
    lines = [
        f"Surely in conflict, over the steps of the runs: {', '.join(sure['conflict'])}."
        if sure["conflict"]
        else "No pair of tasks is surely in conflict over the steps of the runs."
    ]
    if sure["agreement"]:
        lines.append(f"Surely in agreement: {', '.join(sure['agreement'])}.")
    if len(pairs) >= 5:
        lines.append(f"Of {len(pairs)} pairs about {0.05 * len(pairs):.1f} would be called sure by chance alone.")
    negative = sum(p["negative_share"] for p in pairs.values()) / len(pairs)
    lines.append(
        f"In a single step a share of {negative:.2f} of the signs was negative (a coin flip gives 0.50); what the rule "
        f"took away was {conflict['removed']:.2f} of the summed gradient's length on average."
    )
    return lines


def _pair(name: str, figures: dict[str, Any]) -> str:
    return f"{name.replace('~', ' and ')} (mean cosine {figures['cosine']:+.3f} ± {figures['standard_error']:.3f})"


def _merge(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cosines = [part["cosine"] for part in parts]
    cosine = sum(cosines) / len(parts)
    errors = [part["standard_error"] for part in parts]
    error = None if None in errors else math.sqrt(sum(e**2 for e in errors)) / len(parts)
    if error is not None and len(parts) > 1:
        # Steps of one run are not independent; the spread over seeds tells what they hide.
        error = max(error, statistics.stdev(cosines) / math.sqrt(len(parts)))
    negative = sum(part["negative_share"] for part in parts) / len(parts)
    windows = None
    if all("windows" in part for part in parts):  # earlier versions counted none
        windows = 1 + sum(part["windows"] - 1 for part in parts)
    word = relation(cosine, error, windows)
    return {"cosine": cosine, "standard_error": error, "negative_share": negative, "verdict": word}
