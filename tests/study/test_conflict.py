"""Conflicts over the seeds of a method."""

from __future__ import annotations

from typing import Any

import pytest

from ortholora.runs.record import RunRecord
from ortholora.study.statistics.conflict import conflict_sentences, summarise_conflict


def record(conflict: dict[str, Any] | None, seed: int = 0) -> RunRecord:
    return RunRecord("ortho", "ortho", "matrix", seed, ("a", "b"), {}, {}, {}, {}, {}, 0.1, 1, conflict=conflict)


def report(cosine: float, error: float | None, share: float = 0.5) -> dict[str, Any]:
    figures = {"cosine": cosine, "standard_error": error, "negative_share": share, "verdict": "unsure"}
    return {"steps": 9, "removed": 0.2, "pairs": {"a~b": figures}}


def test_seeds_are_averaged_and_their_errors_combined() -> None:
    merged = summarise_conflict([record(report(-0.03, 0.03)), record(report(-0.09, 0.04, 0.7), 1)])
    assert merged is not None
    pair = merged["pairs"]["a~b"]
    assert pair["cosine"] == pytest.approx(-0.06)
    assert pair["standard_error"] == pytest.approx(0.03)  # over seeds: |0.09 - 0.03| / 2; within runs: 0.025
    assert pair["negative_share"] == pytest.approx(0.6)
    assert pair["verdict"] == "conflict"
    near = summarise_conflict([record(report(-0.05, 0.03)), record(report(-0.05, 0.04), 1)])
    assert near is not None
    assert near["pairs"]["a~b"]["standard_error"] == pytest.approx(0.025)  # sqrt(0.03² + 0.04²) / 2


@pytest.mark.parametrize(("cosine", "word"), [(0.1, "agreement"), (-0.1, "conflict"), (-0.01, "unsure")])
def test_verdicts_in_words(cosine: float, word: str) -> None:
    merged = summarise_conflict([record(report(cosine, 0.02))])
    assert merged is not None
    assert merged["pairs"]["a~b"]["verdict"] == word
    text = " ".join(conflict_sentences(merged))
    assert ("No pair" in text) == (word != "conflict")
    assert ("a and b" in text) == (word != "unsure")
    assert "0.50 of the signs" in text
    assert "0.20 of the summed" in text
    assert "%" not in text


def test_one_step_has_no_error_and_nothing_is_sure() -> None:
    merged = summarise_conflict([record(report(-0.5, None))])
    assert merged is not None
    assert merged["pairs"]["a~b"]["verdict"] == "unsure"


def test_nothing_captured() -> None:
    assert summarise_conflict([record(None)]) is None
    assert conflict_sentences(None) == []


def test_pairs_of_two_groups_are_in_no_run_and_a_task_alone_dilutes_nothing() -> None:
    alone = {"steps": 9, "removed": 0.0, "pairs": {}}
    merged = summarise_conflict([record(report(-0.05, 0.03)), record(alone)])
    assert merged is not None
    assert (list(merged["pairs"]), merged["removed"]) == (["a~b"], 0.2)
