"""What the figures say, in sentences, and what to compare next.

The words claim no more than was measured: one training with one seed, hardly tested against outcomes
(benchmarks/is_it_true.py, docs/diagnose.md). So every sentence says what to *try*; `compare` is what decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from ortholora.study.diagnose.blocks import pair_name, pairs_of

#: Lengths that surely differ by more than this factor are named.
UNEQUAL = 2.0
#: What is advised for each finding; `single` and `joint` are always compared.
#: The first is the one that did best where a task stood still (benchmarks/gaps).
PLATEAU, SIZE, DIRECTION = ["gradnorm(alpha=2)", "plateau"], ["balanced"], ["balanced-ortho", "ortho"]


def verdict(found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Judge all figures.

    Args:
        found: What `figures` returned, with `tasks` and `settings`.

    Returns:
        The sentences, and the methods to compare, as they are written in a configuration.
    """
    last, steps = found["points"][-1], found["settings"]["steps"]
    parts = [
        _pace(found["pace"] or {}, last["sizes"], steps),
        _sizes(last, found["tasks"]),
        _directions(last, found["tasks"], found["settings"]["quota"]),
    ]
    methods = [rule for _, rules in parts for rule in rules]
    sentences = [sentence for lines, _ in parts for sentence in lines]
    if not methods:
        sentences.append(_nothing(found, steps))
    sentences += _transfers(found["transfer"], found["tasks"])
    sentences += _undetermined(last["sizes"])
    if found["grouping"]:
        sentences.append(_grouping(found["grouping"]))
    if found["pace"]:
        sentences += _unknown(found["pace"], steps)
    return sentences, (list(dict.fromkeys(methods)) or ["single", "joint"]) + _groups(found["grouping"])


def _pace(pace: dict[str, Any], sizes: dict[str, Any], steps: int) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    for task, entry in pace.items():
        if entry["case"] not in ("still", "behind"):
            continue
        start, own, company = entry["alone"][0]["value"], entry["alone"][-1]["value"], entry["jointly"][-1]["value"]
        share = f"{100 * max(0.0, entry['share']):.0f} % of what it does alone"
        size = _own_size(task, sizes)
        if entry["case"] == "still":
            lines.append(
                f"`{task}` learns alone (loss {start:.3f} → {own:.3f} in {steps} steps) and stands nearly still in "
                f"company (→ {company:.3f}, {share}; surely less than a quarter){size}. Try a rule that lifts tasks "
                "that lag (`gradnorm(alpha=2)`, `plateau`), or a larger weight for it."
            )
        else:
            lines.append(
                f"`{task}` lags in company: {share} (loss {start:.3f} → {company:.3f} against {own:.3f} alone, after "
                f"{steps} steps; surely less than two thirds){size}. Try `gradnorm(alpha=2)`, `plateau`, or "
                "more steps."
            )
    return lines, PLATEAU if lines else []


def _own_size(task: str, sizes: dict[str, Any]) -> str:
    """How long a task's gradient is beside the longest one."""
    known = {name: entry["length"] for name, entry in sizes.items() if entry["determined"]}
    if not known:
        return ""
    longest = max(known, key=lambda name: known[name])
    if task not in known:
        return "; its gradient is too short for its length to be known from these rows"
    share = known[task] / known[longest]
    return "" if task == longest else f"; its gradient is {share:.2f} times as long as that of `{longest}`"


def _sizes(last: dict[str, Any], tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    lines = []
    for a, b in pairs_of(tasks):
        ratio = last["pairs"][pair_name(a, b)]["log_ratio"]
        if ratio is None or not math.isfinite(ratio["error"]):
            continue
        long, short, low, high = (
            (a, b, ratio["low"], ratio["high"]) if ratio["value"] > 0 else (b, a, -ratio["high"], -ratio["low"])
        )
        if low > math.log(UNEQUAL):
            times, ends = math.exp(abs(ratio["value"])), f"{math.exp(low):.1f} to {math.exp(high):.1f}"
            lines.append(
                f"The gradient of `{long}` is {times:.1f} times as long as that of `{short}` ({ends}), so that it "
                f"decides most of a joint step: try `balanced`, or a weight of about {times:.1f} for `{short}`."
            )
    return lines, SIZE if lines else []


def _directions(last: dict[str, Any], tasks: Sequence[str], quota: dict[str, int]) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    against = False
    for a, b in pairs_of(tasks):
        pair = last["pairs"][pair_name(a, b)]
        if not pair["sure"]:
            continue
        negative = pair["product"]["value"] < 0
        against |= negative
        verb = "pull against each other" if negative else "pull the same way"
        line = f"`{a}` and `{b}` surely {verb} ({_cosine(pair)}; {_matrices(last, a, b, negative)})."
        rows, right = pair["right_at"]
        needed = pair["rows_needed"]
        line += f" A step with {rows} rows of each shows that sign {100 * right:.0f} times of 100"
        line += f"; nine of ten would take about {max(1, math.ceil(needed)):,} rows." if right < 0.9 else "."
        if negative:
            line += (
                " Rules that project (`ortho`, `balanced-ortho`) are made for this; whether they gain anything on dev, "
                "only a comparison can tell."
            )
        lines.append(line)
    return lines, DIRECTION if against else []


def _cosine(pair: dict[str, Any]) -> str:
    cosine = pair["cosine"]
    if cosine is None:
        return "the sign of the product is known; the rows do not determine both lengths, so there is no cosine"
    return f"cosine {cosine['value']:+.2f}, {cosine['low']:+.2f} to {cosine['high']:+.2f}"


def _matrices(last: dict[str, Any], a: str, b: str, negative: bool) -> str:
    own = last["matrices"]["pairs"][pair_name(a, b)]
    agree = [bool(sure) and (sign < 0) == negative for sure, sign in zip(own["sure"], own["sign"], strict=True)]
    return f"surely so in {sum(agree)} of {len(agree)} matrices"


def _nothing(found: dict[str, Any], steps: int) -> str:
    reaches = [
        max(abs(entry["cosine"][end]) for end in ("low", "high"))
        for entry in found["points"][-1]["pairs"].values()
        if entry["cosine"] is not None
    ]
    seen = f" (no cosine is beyond ±{max(reaches, default=0.0):.2f}, as far as the intervals reach)"
    lag = ", and none surely lags in company" if steps else ""
    if not reaches:
        return f"Nothing is surely wrong{lag}; but these rows say too little to call joint training fine."
    return (
        f"No pair is surely in conflict{seen}, no length surely differs from another by more than a factor of "
        f"{UNEQUAL:.0f}{lag}: {steps} steps show nothing that speaks against joint training."
    )


def _undetermined(sizes: dict[str, Any]) -> list[str]:
    unknown = [f"`{task}`" for task, entry in sizes.items() if not entry["determined"]]
    if not unknown:
        return []
    return [
        f"The rows do not determine how long the gradient of {', '.join(unknown)} is, so nothing is known of sizes and "
        "cosines there. More --rows would tell."
    ]


def _transfers(transfer: dict[str, dict[str, Any]], tasks: Iterable[str]) -> list[str]:
    lines = []
    for a in tasks:
        for b, entry in transfer[a].items():
            if b == a or not entry["sure"]:
                continue
            change = entry["change"]
            does = "lowers" if change["value"] < 0 else "raises"
            size = f"{abs(change['value']):.2g} ± {change['error']:.1g}"
            lines.append(f"Measured: a step on `{a}` alone surely {does} the loss of `{b}` (by {size}).")
    if lines:
        lines.append("What one step does is not known to foretell what a whole training does.")
    return lines


def _grouping(found: dict[str, Any]) -> str:
    if len(found["groups"]) == 1:
        return f"Up to {found['adapters']} adapters: by the measured transfer one for all tasks is worth most."
    groups = "; ".join(", ".join(f"`{task}`" for task in group) for group in found["groups"])
    value, error = 100 * found["more"]["value"], 100 * found["more"]["error"]
    return (
        f"With {len(found['groups'])} adapters, the measured transfer is best for: {groups}. A step is worth "
        f"{value:.2g} ± {error:.1g} % of a loss more than with one adapter; the best of many is flattered by being "
        "chosen, and what one step does is not known to foretell a whole training. Compare them as a method."
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
        "said of company. More --steps would tell."
    ]
