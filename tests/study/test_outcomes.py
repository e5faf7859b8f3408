"""The statistics of `benchmarks/is_it_true.py`, on outcomes whose truth is known."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import synthetic_study

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("outcomes")
    monkeypatch.setattr(found, "RESAMPLES", 300)
    return found


def row(outcomes: ModuleType, giver: str, taker: str, transfer: float, gain: float, **changes: Any) -> Any:
    """A pair whose gain is sure where it is more than a point."""
    own = outcomes.Outcome(
        giver=giver,
        taker=taker,
        transfer=transfer,
        sure=True,
        relative=transfer,
        first_order=transfer,
        cosine=None,
        direction=0,
        outweighed=False,
        gain=gain,
        low=gain - 0.01,
        high=gain + 0.01,
    )
    return dataclasses.replace(own, **changes)


def test_a_gain_is_the_metric_with_the_other_minus_alone_and_its_interval_holds_the_truth(
    outcomes: ModuleType,
) -> None:
    records = synthetic_study.study(np.random.default_rng(0), skill={"single": 0.70, "joint": 0.80}, seeds=2, rows=500)
    alone = [record for record in records if record.method == "single"]
    together = [record for record in records if record.method == "joint"]
    found = outcomes.gains(alone, together, ("task0", "task1"))
    for task in ("task0", "task1"):
        entry = found[task]
        by_hand = [[r.metrics[task] for r in part if task in r.tasks] for part in (together, alone)]
        assert entry["gain"] == pytest.approx(np.mean(by_hand[0]) - np.mean(by_hand[1]))
        assert 0 < entry["ci95"][0] < 0.1 < entry["ci95"][1] < 0.2


def test_the_rank_correlation_has_the_sign_of_the_truth_and_an_interval_around_it(outcomes: ModuleType) -> None:
    generator = np.random.default_rng(1)
    truth = generator.normal(size=30)
    noisy = outcomes.rank_correlation(truth, truth + 0.5 * generator.normal(size=30))
    assert 0.4 < noisy["ci95"][0] < noisy["rho"] < noisy["ci95"][1] < 1
    assert outcomes.rank_correlation([1, 2, 3, 4], [40, 30, 20, 10])["rho"] == pytest.approx(-1)
    nothing = outcomes.rank_correlation(truth, generator.normal(size=30))
    assert nothing["ci95"][0] < 0 < nothing["ci95"][1]
    assert outcomes.rank_correlation([1.0, 2.0], [1.0, 2.0])["rho"] is None
    assert outcomes.rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])["rho"] is None


def test_a_share_has_the_exact_interval(outcomes: ModuleType) -> None:
    """Clopper and Pearson's of n out of n is known in closed form: its low end is 0.025^(1/n)."""
    assert outcomes.share(5, 5)["ci95"] == pytest.approx([0.025 ** (1 / 5), 1])
    assert outcomes.share(0, 4)["ci95"] == pytest.approx([0, 1 - 0.025 ** (1 / 4)])
    assert outcomes.share(0, 0) == {"right": 0, "of": 0, "ci95": None}


def test_what_was_sure_is_counted_by_what_happened(outcomes: ModuleType) -> None:
    rows = [
        row(outcomes, "a", "b", +1, +0.05, direction=-1),  # right, and surely
        row(outcomes, "b", "a", -1, +0.02, direction=-1, outweighed=True),  # wrong, and surely
        row(outcomes, "a", "c", -2, -0.004, outweighed=True),  # right, not surely
        row(outcomes, "c", "a", +2, -0.03, sure=False),  # wrong, but nobody was sure
        row(outcomes, "b", "c", +3, 0.0),  # nothing happened: not right
        row(outcomes, "c", "b", -3, -0.05, cosine=-0.5),
    ]
    judged = outcomes.judge(rows)
    assert (judged["pairs"], judged["surely_gained"], judged["surely_lost"]) == (6, 2, 2)
    counts = {key: (entry["right"], entry["of"]) for key, entry in judged.items() if key not in _NO_SHARES}
    assert counts == {
        "sure": (3, 5),
        "sure_to_help": (1, 2),
        "sure_to_hurt": (2, 3),
        "any_gain": (2, 6),
        "direction": (0, 1),
        "outweighed": (1, 2),
    }
    assert (judged["sure_surely_right"], judged["sure_surely_wrong"]) == (2, 1)
    assert judged["rank_correlation"]["transfer"]["pairs"] == 6
    assert judged["rank_correlation"]["cosine"] == {"rho": None, "ci95": None, "pairs": 1}
    pace = outcomes.judge_pace({"a": "still", "b": "level", "c": "unknown"}, rows)
    assert pace["mean_gain"] == pytest.approx({"a": -0.005, "b": 0.0, "c": -0.002})
    assert (pace["named"]["right"], pace["named"]["of"]) == (1, 1)
    assert (pace["not_named"]["right"], pace["not_named"]["of"]) == (1, 1)


_NO_SHARES = ("pairs", "surely_gained", "surely_lost", "sure_surely_right", "sure_surely_wrong", "rank_correlation")


def test_predictions_are_signed_so_that_positive_helps(outcomes: ModuleType) -> None:
    def step(change: float) -> dict[str, Any]:
        return {"change": {"value": change}, "predicted": 2 * change, "sure": True}

    pair = {
        "log_ratio": {"value": 1.5, "error": 0.1, "low": 1.2, "high": 1.8},
        "cosine": None,
        "product": {"value": -1.0},
        "sure": True,
    }
    found = {
        "transfer": {"a": {"b": step(-0.1)}, "b": {"a": step(0.3)}},
        "points": [{"pairs": {"a~b": pair}}],
        "pace": {task: {"jointly": [{"value": 9.0}, {"value": loss}]} for task, loss in (("a", 2.0), ("b", 0.5))},
    }
    gain = {task: {"gain": 0.01, "ci95": [0.0, 0.02]} for task in "ab"}
    there, back = outcomes.outcomes(found, {("a", "b"): gain})
    assert (there.giver, there.transfer, there.relative, there.first_order) == ("a", 0.1, 0.2, 0.2)
    assert (back.giver, back.transfer, back.relative) == ("b", -0.3, pytest.approx(-0.15))
    assert (there.outweighed, back.outweighed) == (True, False)  # a is e^1.2 times as long as b, at least
    assert there.direction == back.direction == -1


def test_a_pair_of_two_studies_counts_once_with_the_last_diagnosis(outcomes: ModuleType) -> None:
    first, second = row(outcomes, "a", "b", 1, 0.1), row(outcomes, "a", "b", -1, 0.1)
    assert outcomes.distinct([[first], [row(outcomes, "b", "a", 1, 0)], [second]])[0] is second
    assert len(outcomes.distinct([[first], [second]])) == 1


def test_the_studies_share_what_they_have_in_common_and_the_table_shows_every_pair(
    outcomes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = importlib.import_module("is_it_true")
    monkeypatch.setattr(script, "read_tasks", lambda *_, **__: [])
    truth = script.Truth(["demo", "parts", "many-4"], tmp_path, 1)
    runs = truth.runs("many-4")
    assert {owner: len(own) for owner, own in runs.items()} == {"demo": 12, "many-4": 8}
    assert {run.seed for own in runs.values() for run in own} == {20, 21}
    assert not truth.finished("parts")
    entry = {
        "outcomes": [row(outcomes, "a", "b", 1e-3, 0.05), row(outcomes, "b", "a", 1e-3, -0.001)],
        "cases": {"a": "level", "b": "still"},
        "verdict": [],
        "gains": [],
    }
    table = script.table_of(script.results_of({"demo": entry}))
    assert "| a sure transfer has the gain's sign | 1 of 2 [1, 99 %] | 1 of 2 [1, 99 %] |" in table
    assert "| demo: a → b | +1.0e-03 sure | – | **+5.0 [+4.0, +6.0]** |" in table


def test_the_committed_table_is_that_of_the_committed_figures(outcomes: ModuleType) -> None:
    script = importlib.import_module("is_it_true")
    results = json.loads(script.RESULTS.read_text(encoding="utf-8"))["results"]
    assert script.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == script.table_of(results) + "\n"
    for entry in results["studies"].values():
        own = [outcomes.Outcome(**row) for row in entry["outcomes"]]
        again = json.loads(json.dumps(outcomes.judge(own)))
        del again["rank_correlation"], entry["judged"]["rank_correlation"]  # of many more resamples
        assert again == entry["judged"]
