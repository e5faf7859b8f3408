"""What `diagnose` had predicted beside what happened: gains, rank correlations, and how often "sure" was right.

Everything is on ordered pairs of tasks: i → j is what i does to j. A gain is j's metric, trained with i, minus j's
metric, trained alone; a prediction is signed the same way: positive helps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import ConstantInputWarning, DegenerateDataWarning, binomtest, bootstrap, spearmanr

from ortholora.runs.record import RunRecord
from ortholora.study.diagnose.blocks import pair_name
from ortholora.study.diagnose.findings import UNEQUAL
from ortholora.study.statistics.bootstrap import interval, resample
from ortholora.study.statistics.grid import arrange

RESAMPLES, SEED = 2000, 0
#: What is correlated with the gain; the first was named before any result was seen.
PREDICTIONS = {
    "transfer": "measured step",
    "relative": "measured step, relative to the loss",
    "first_order": "first order",
    "cosine": "cosine",
}


@dataclass(frozen=True)
class Outcome:
    """An ordered pair: what `diagnose` said of i → j, and what j gained.

    Attributes:
        giver: Task i.
        taker: Task j.
        transfer: How far a step on i lowered the loss of j; positive helps.
        sure: Whether the sign of that was called sure.
        relative: The same, relative to j's loss.
        first_order: What the gradients predict of it.
        cosine: Of the pair; None where the rows do not determine it.
        direction: Sign of the pair's product where it was called sure; 0 where it was not.
        outweighed: Whether j's gradient was called surely shorter than half of i's.
        gain: Metric of j with i minus alone.
        low: End of its 95 % interval over rows and seeds.
        high: The other end.
    """

    giver: str
    taker: str
    transfer: float
    sure: bool
    relative: float
    first_order: float
    cosine: float | None
    direction: int
    outweighed: bool
    gain: float
    low: float
    high: float


def gains(alone: Sequence[RunRecord], together: Sequence[RunRecord], pair: tuple[str, str]) -> dict[str, Any]:
    """What each of two tasks gains from the other.

    Args:
        alone: The records of `single`, one a task and seed.
        together: The records of `joint` with these two tasks, one a seed.
        pair: The two tasks.

    Returns:
        Task → `alone`, `together` (means over seeds), `gain` and its `ci95`, fractions.
    """
    grid = arrange([*alone, *together], ["single", "joint"], pair)
    drawn = resample(grid, RESAMPLES, SEED)
    means = grid.values.mean(axis=1)
    return {
        task: {
            "alone": float(means[0, i]),
            "together": float(means[1, i]),
            "gain": float(means[1, i] - means[0, i]),
            "ci95": interval(drawn[:, 1, i] - drawn[:, 0, i]),
        }
        for i, task in enumerate(pair)
    }


def outcomes(found: dict[str, Any], measured: dict[tuple[str, str], dict[str, Any]]) -> list[Outcome]:
    """Lay predictions and outcomes side by side.

    Args:
        found: A diagnosis, with pace.
        measured: Pair, in the order of the configuration → what `gains` returned.
    """
    return [
        _outcome(found, (a, b), giver, taker, own[taker])
        for (a, b), own in measured.items()
        for giver, taker in ((a, b), (b, a))
    ]


def _outcome(found: dict[str, Any], pair: tuple[str, str], giver: str, taker: str, gain: dict[str, Any]) -> Outcome:
    step, last = found["transfer"][giver][taker], found["points"][-1]["pairs"][pair_name(*pair)]
    change = step["change"]["value"]
    ratio, cosine = last["log_ratio"], last["cosine"]
    shorter = False
    if ratio is not None:
        # Of the first task's length to the second's.
        surely = ratio["low"] if giver == pair[0] else -ratio["high"]
        shorter = math.isfinite(surely) and surely > math.log(UNEQUAL)
    return Outcome(
        giver=giver,
        taker=taker,
        transfer=-change,
        sure=step["sure"],
        relative=-change / found["pace"][taker]["jointly"][-1]["value"],
        first_order=-step["predicted"],
        cosine=None if cosine is None else cosine["value"],
        direction=int(np.sign(last["product"]["value"])) if last["sure"] else 0,
        outweighed=shorter,
        gain=gain["gain"],
        low=gain["ci95"][0],
        high=gain["ci95"][1],
    )


def distinct(of_studies: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """Every ordered pair once: one that several studies have counts with the diagnosis of the last."""
    return list({(row.giver, row.taker): row for rows in of_studies for row in rows}.values())


def judge(rows: Sequence[Outcome]) -> dict[str, Any]:
    """How good the predictions were."""
    sure = [row for row in rows if row.sure]
    both = {(row.giver, row.taker): row for row in rows}
    directions = [
        (row.direction, row.gain + both[row.taker, row.giver].gain)
        for row in (both[pair] for pair in combinations(dict.fromkeys(r.giver for r in rows), 2) if pair in both)
        if row.direction
    ]
    return {
        "pairs": len(rows),
        "surely_gained": sum(row.low > 0 for row in rows),
        "surely_lost": sum(row.high < 0 for row in rows),
        "rank_correlation": {name: _correlation(rows, name) for name in PREDICTIONS},
        "sure": share(sum(row.transfer * row.gain > 0 for row in sure), len(sure)),
        "sure_surely_right": sum(_surely(row) * row.transfer > 0 for row in sure),
        "sure_surely_wrong": sum(_surely(row) * row.transfer < 0 for row in sure),
        "sure_to_help": share(sum(r.gain > 0 for r in sure if r.transfer > 0), sum(r.transfer > 0 for r in sure)),
        "sure_to_hurt": share(sum(r.gain < 0 for r in sure if r.transfer < 0), sum(r.transfer < 0 for r in sure)),
        "any_gain": share(sum(row.gain > 0 for row in rows), len(rows)),
        "direction": share(sum(sign * gain > 0 for sign, gain in directions), len(directions)),
        "outweighed": share(sum(r.gain < 0 for r in rows if r.outweighed), sum(r.outweighed for r in rows)),
    }


def judge_pace(cases: dict[str, str], rows: Sequence[Outcome]) -> dict[str, Any]:
    """Whether tasks that were said to lag in company lost, on average over their partners; and whether others did not.

    Args:
        cases: Task → what `diagnose` said of its pace.
        rows: The outcomes.
    """
    mean = {task: float(np.mean([row.gain for row in rows if row.taker == task])) for task in cases}
    named = [task for task, case in cases.items() if case in ("still", "behind")]
    other = [task for task, case in cases.items() if case in ("level", "ahead")]
    return {
        "mean_gain": mean,
        "named": share(sum(mean[task] < 0 for task in named), len(named)),
        "not_named": share(sum(mean[task] >= 0 for task in other), len(other)),
    }


def share(right: int, count: int) -> dict[str, Any]:
    """A count out of a count, with the exact 95 % interval (Clopper and Pearson 1934); none of nothing."""
    if not count:
        return {"right": 0, "of": 0, "ci95": None}
    found = binomtest(right, count).proportion_ci(confidence_level=0.95, method="exact")
    return {"right": right, "of": count, "ci95": [float(found.low), float(found.high)]}


def rank_correlation(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, Any]:
    """Spearman's rank correlation, with a 95 % interval from a bootstrap over the ordered pairs.

    Pairs that share a task go together, which the bootstrap does not know. A resample of one value has no correlation,
    and is left out; so is all of it with fewer than three pairs.
    """
    nothing: dict[str, Any] = {"rho": None, "ci95": None, "pairs": len(predicted)}
    if len(predicted) < 3:
        return nothing
    with warnings.catch_warnings():
        for category in (ConstantInputWarning, DegenerateDataWarning):  # of single resamples
            warnings.simplefilter("ignore", category)
        rho = _rho(np.asarray(predicted), np.asarray(measured))
        if not math.isfinite(rho):
            return nothing
        drawn = bootstrap(
            (np.asarray(predicted), np.asarray(measured)),
            _rho,
            n_resamples=RESAMPLES,
            paired=True,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(SEED),
        ).bootstrap_distribution
    return {"rho": rho, "ci95": interval(drawn[np.isfinite(drawn)]), "pairs": len(predicted)}


def _rho(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(spearmanr(predicted, measured).statistic)


def _correlation(rows: Sequence[Outcome], name: str) -> dict[str, Any]:
    known = [(value, row.gain) for row in rows if (value := getattr(row, name)) is not None]
    return rank_correlation([value for value, _ in known], [gain for _, gain in known])


def _surely(row: Outcome) -> int:
    """The sign of a gain whose interval does not hold zero; 0 of one that does."""
    return int(row.low > 0) - int(row.high < 0)
