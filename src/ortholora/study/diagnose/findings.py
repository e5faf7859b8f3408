"""What a diagnosis surely found: who lags, whose gradient is long, who pulls against whom; each with what to try.

The words claim no more than was measured: one training with one seed, hardly tested against outcomes
(benchmarks/is_it_true.py, docs/diagnose.md). So every sentence says what to *try*; `compare` is what decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ortholora.study.diagnose.blocks import pair_name, pairs_of

#: Lengths that surely differ by more than this factor are named.
UNEQUAL = 2.0
#: What is advised for each finding; `single` and `joint` are always compared.
#: The first is the one that did best where a task stood still (benchmarks/gaps).
PLATEAU, SIZE, DIRECTION = ["gradnorm(alpha=2)", "plateau"], ["balanced"], ["balanced-ortho", "ortho"]


@dataclass(frozen=True)
class Finding:
    """Something that is sure.

    Attributes:
        sentence: What it is, with its figures, their certainty and what to try.
        short: The same in a few words; empty where it is nothing to act on.
        rules: What to compare.
    """

    sentence: str
    short: str = ""
    rules: Sequence[str] = field(default=())


def findings(found: dict[str, Any]) -> list[Finding]:
    """All that is surely wrong, and the pairs that surely pull the same way; the most telling first.

    Args:
        found: What `figures` returned, with `tasks` and `settings`.
    """
    last, tasks = found["points"][-1], found["tasks"]
    return [
        *_paces(found["pace"] or {}, last["sizes"], found["settings"]["steps"]),
        *_sizes(last, tasks),
        *_directions(last, tasks),
    ]


def _paces(pace: dict[str, Any], sizes: dict[str, Any], steps: int) -> list[Finding]:
    made = []
    for task, entry in pace.items():
        if entry["case"] not in ("still", "behind"):
            continue
        start, own, company = entry["alone"][0]["value"], entry["alone"][-1]["value"], entry["jointly"][-1]["value"]
        share, size = f"{100 * max(0.0, entry['share']):.0f} %", _own_size(task, sizes)
        if entry["case"] == "still":
            sentence = (
                f"`{task}` learns alone (loss {start:.3f} → {own:.3f} in {steps} steps) and stands nearly still in "
                f"company (→ {company:.3f}): it takes away {share} of what it does alone, surely less than a quarter."
                f"{size} Try a rule that lifts tasks that lag (`gradnorm(alpha=2)`, `plateau`), or a larger weight "
                "for it."
            )
            made.append(Finding(sentence, f"`{task}` stands still in company", PLATEAU))
        else:
            sentence = (
                f"`{task}` lags in company: {share} of what it does alone, surely less than two thirds (loss "
                f"{start:.3f} → {company:.3f}, alone → {own:.3f}, after {steps} steps).{size} Try "
                "`gradnorm(alpha=2)`, `plateau`, or more steps."
            )
            made.append(Finding(sentence, f"`{task}` lags in company", PLATEAU))
    return made


def _own_size(task: str, sizes: dict[str, Any]) -> str:
    """How long a task's gradient is beside the longest one; nothing where that is not known."""
    known = {name: entry["length"] for name, entry in sizes.items() if entry["determined"]}
    longest = max(known, key=lambda name: known[name], default=task)
    if task not in known or task == longest:
        return ""
    return f" Its gradient is {known[task] / known[longest]:.2f} times as long as that of `{longest}`."


def _sizes(last: dict[str, Any], tasks: Sequence[str]) -> list[Finding]:
    made = []
    for a, b in pairs_of(tasks):
        ratio = last["pairs"][pair_name(a, b)]["log_ratio"]
        if ratio is None or not math.isfinite(ratio["error"]):
            continue
        long, short, low, high = (
            (a, b, ratio["low"], ratio["high"]) if ratio["value"] > 0 else (b, a, -ratio["high"], -ratio["low"])
        )
        if low > math.log(UNEQUAL):
            times, ends = math.exp(abs(ratio["value"])), f"{math.exp(low):.1f} to {math.exp(high):.1f}"
            sentence = (
                f"The gradient of `{long}` is {times:.1f} times as long as that of `{short}` ({ends}), so that it "
                f"decides most of a joint step: try `balanced`, or a weight of about {times:.1f} for `{short}`."
            )
            brief = f"the gradient of `{long}` is surely more than {UNEQUAL:.0f} times as long as that of `{short}`"
            made.append(Finding(sentence, brief, SIZE))
    return made


def _directions(last: dict[str, Any], tasks: Sequence[str]) -> list[Finding]:
    made = []
    for a, b in pairs_of(tasks):
        pair = last["pairs"][pair_name(a, b)]
        if not pair["sure"]:
            continue
        negative = pair["product"]["value"] < 0
        verb = "pull against each other" if negative else "pull the same way"
        line = f"`{a}` and `{b}` surely {verb} ({_cosine(pair)}; {_matrices(last, a, b, negative)}).{_seen(pair)}"
        if not negative:
            made.append(Finding(line))
            continue
        line += (
            " Rules that project (`ortho`, `balanced-ortho`) are made for this; whether they gain anything on dev, "
            "only a comparison can tell."
        )
        made.append(Finding(line, f"`{a}` and `{b}` surely {verb}", DIRECTION))
    return made


def _seen(pair: dict[str, Any]) -> str:
    """How often a step shows the sign, and how many rows it would take."""
    rows, right = pair["right_at"]
    needed = f"; nine of ten would take about {max(1, math.ceil(pair['rows_needed'])):,} rows" if right < 0.9 else ""
    return f" A step with {rows} rows of each shows that sign {100 * right:.0f} times of 100{needed}."


def _cosine(pair: dict[str, Any]) -> str:
    cosine = pair["cosine"]
    if cosine is None:
        return "the sign of the product is known; the rows do not determine both lengths, so there is no cosine"
    return f"cosine {cosine['value']:+.2f}, {cosine['low']:+.2f} to {cosine['high']:+.2f}"


def _matrices(last: dict[str, Any], a: str, b: str, negative: bool) -> str:
    own = last["matrices"]["pairs"][pair_name(a, b)]
    agree = [bool(sure) and (sign < 0) == negative for sure, sign in zip(own["sure"], own["sign"], strict=True)]
    return f"surely so in {sum(agree)} of {len(agree)} matrices"
