"""The verdict: what was surely found, what is not known, and what to compare next, in sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ortholora.study.diagnose.findings import UNEQUAL, findings

#: Findings that the headline names; the sentences have them all.
_NAMED = 3
#: Sure transfers that have a sentence each.
_MEASURED = 6


def verdict(found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Judge all figures.

    Args:
        found: What `figures` returned, with `tasks` and `settings`.

    Returns:
        The sentences, and the methods to compare, as they are written in a configuration.
    """
    sure = findings(found)
    methods = [rule for finding in sure for rule in finding.rules]
    sentences = [finding.sentence for finding in sure]
    if not methods:
        sentences.append(_nothing(found))
    sentences += _transfers(found["transfer"], found["tasks"], asked=found["grouping"] is not None)
    sentences += _undetermined(found["points"][-1]["sizes"])
    if found["grouping"]:
        sentences.append(_grouping(found["grouping"]))
    if found["pace"]:
        sentences += _unknown(found["pace"], found["settings"]["steps"])
    return sentences, (list(dict.fromkeys(methods)) or ["single", "joint"]) + _groups(found["grouping"])


def headline(found: dict[str, Any]) -> str:
    """The verdict in a sentence or two: what is surely wrong, and what to try; the same findings as `verdict`."""
    named = [finding for finding in findings(found) if finding.short]
    if not named:
        if not _reaches(found):
            return "These rows say too little: nothing is surely wrong, and nothing shows that joint training is fine."
        return "Nothing surely speaks against joint training so far. Compare it with an adapter for each task."
    shown = "; ".join(finding.short for finding in named[:_NAMED])
    more = f"; and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    rules = list(dict.fromkeys(f"`{rule}`" for finding in named for rule in finding.rules))
    return f"{shown[:1].upper()}{shown[1:]}{more}. Try {', '.join(rules)}: only a comparison can tell whether it helps."


def _reaches(found: dict[str, Any]) -> list[float]:
    """How far from zero the interval of each cosine reaches, where the rows determine one."""
    return [
        max(abs(entry["cosine"][end]) for end in ("low", "high"))
        for entry in found["points"][-1]["pairs"].values()
        if entry["cosine"] is not None
    ]


def _nothing(found: dict[str, Any]) -> str:
    reaches, steps = _reaches(found), found["settings"]["steps"]
    lag = ", and none surely lags in company" if steps else ""
    if not reaches:
        return f"Nothing is surely wrong{lag}; but these rows say too little to call joint training fine."
    shown = f"{steps} steps show" if steps else "the start shows"
    return (
        f"No pair is surely in conflict (no cosine is beyond ±{max(reaches):.2f}, as far as the intervals reach), no "
        f"length surely differs from another by more than a factor of {UNEQUAL:.0f}{lag}: {shown} nothing that speaks "
        "against joint training. That is no promise for a whole training; a comparison of `single` with `joint` tells."
    )


def _undetermined(sizes: dict[str, Any]) -> list[str]:
    unknown = [f"`{task}`" for task, entry in sizes.items() if not entry["determined"]]
    if not unknown:
        return []
    return [
        f"The rows do not determine how long the gradient of {', '.join(unknown)} is, so nothing is known of sizes and "
        "cosines there. More `--rows` may tell."
    ]


def _transfers(transfer: dict[str, dict[str, Any]], tasks: Sequence[str], asked: bool) -> list[str]:
    """The sure transfers between tasks, the surest first; and how tasks are parted, unless that was `asked` already."""
    sure = [(a, b, transfer[a][b]["change"]) for a in tasks for b in tasks if a != b and transfer[a][b]["sure"]]
    sure.sort(key=lambda one: -abs(one[2]["value"]) / max(one[2]["error"], 1e-300))
    lines = []
    for a, b, change in sure[:_MEASURED]:
        does = "lowers" if change["value"] < 0 else "raises"
        size = f"{abs(change['value']):.2g} ± {change['error']:.1g}"
        lines.append(f"Measured: a step on `{a}` alone surely {does} the loss of `{b}` (by {size}).")
    if len(sure) > _MEASURED:
        lines.append(f"{len(sure) - _MEASURED} more such steps surely change the loss of another task; see the table.")
    if sure:
        lines.append("What one step does has not foretold what a whole training does, as far as that was tested.")
    if not asked and any(change["value"] > 0 for _, _, change in sure):
        lines.append("To try adapters for groups of tasks all the same: `--groups 2` proposes them by these figures.")
    return lines


def _grouping(found: dict[str, Any]) -> str:
    if len(found["groups"]) == 1:
        return f"Up to {found['adapters']} adapters: by the measured transfer one for all tasks is worth most."
    groups = "; ".join(", ".join(f"`{task}`" for task in group) for group in found["groups"])
    value, error = 100 * found["more"]["value"], 100 * found["more"]["error"]
    return (
        f"With {len(found['groups'])} adapters, the measured transfer is best for: {groups}. A step is worth "
        f"{value:.2g} ± {error:.1g} % of a loss more than with one adapter; the best of many is flattered by being "
        "chosen, and what one step does has not foretold a whole training so far. Compare them as a method."
    )


def _groups(grouping: dict[str, Any] | None) -> list[str]:
    """The proposed groups as a method of `compare`; none where one adapter is best."""
    if grouping is None or len(grouping["groups"]) < 2:
        return []
    return [json.dumps({"name": "groups", "rule": "sum", "groups": grouping["groups"]}, ensure_ascii=False)]


def _unknown(pace: dict[str, Any], steps: int) -> list[str]:
    unknown = [f"`{task}`" for task, entry in pace.items() if entry["case"] == "unknown"]
    if not unknown:
        return []
    return [
        f"Alone, {', '.join(unknown)} did not surely begin to learn (5 % of the loss) in {steps} steps: nothing can be "
        "said of company. More `--steps` may tell."
    ]
