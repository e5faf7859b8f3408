"""Metrics, pinned against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ortholora.errors import UserError
from ortholora.metrics import exact_match, rouge_l
from ortholora.metrics.compute import can_score, compute, details

# Confusion matrix: 3 true negatives, 1 false positive, 2 false negatives, 4 true positives.
TARGETS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
PREDICTED = np.array([0, 0, 0, 1, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", 7 / 10),
        ("f1", 2 * 4 / (6 + 5)),
        ("accuracy_f1", (7 / 10 + 8 / 11) / 2),
        ("macro_f1", (2 * 3 / (4 + 5) + 8 / 11) / 2),
        ("matthews", (4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5)),
    ],
)
def test_classification_by_hand(metric, expected):
    assert compute(metric, TARGETS, PREDICTED, 2) == pytest.approx(expected, abs=1e-12)


def test_written_answers_by_hand():
    tokens, losses = np.array([1.0, 3.0]), np.array([0.5, 1.5])
    assert compute("inverse_perplexity", tokens, losses, None) == pytest.approx(math.exp(-2.0 / 4.0))
    assert compute("exact_match", np.ones(4), np.array([1.0, 0, 0, 1]), None) == 0.5
    assert compute("rouge_l", np.ones(2), np.array([0.25, 0.75]), None) == 0.5


def test_generated_answers_by_hand():
    pytest.importorskip("rouge_score")
    wanted, written = ["the cat sat", "a b", "c"], ["the cat  sat ", "a x b", "d"]
    assert exact_match.score_rows(wanted, written).tolist() == [1.0, 0.0, 0.0]
    # a b against a x b: the longest common subsequence is 2 of 2 and 2 of 3 words.
    assert rouge_l.score_rows(wanted, written).tolist() == pytest.approx([1.0, 2 * (1 * 2 / 3) / (1 + 2 / 3), 0.0])


def test_rouge_refuses_what_it_cannot_read():
    pytest.importorskip("rouge_score")
    with pytest.raises(UserError, match="Latin"):
        rouge_l.score_rows(["ok", "привет"], ["ok", "привет"])
    with pytest.raises(UserError, match="Latin"):
        rouge_l.check(["ok", "→"])
    assert can_score("rouge_l", ["ok", "so"])
    assert not can_score("rouge_l", ["ok", "→"])


def test_f1_takes_class_one_as_positive():
    assert compute("f1", 1 - TARGETS, 1 - PREDICTED, 2) == pytest.approx(2 * 3 / (4 + 5))


def test_correlations_by_hand():
    targets, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 10.0])
    # Deviations: (-1.5, -.5, .5, 1.5) and (-3, -1, -2, 6): products 13, squares 5 and 50.
    pearson = 13 / math.sqrt(5 * 50)
    # One swap of neighbouring ranks: 1 - 6 * 2 / (4 * 15).
    assert compute("pearson", targets, predicted, None) == pytest.approx(pearson)
    assert compute("spearman", targets, predicted, None) == pytest.approx(0.8)
    assert compute("pearson_spearman", targets, predicted, None) == pytest.approx((pearson + 0.8) / 2)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson_spearman"])
@pytest.mark.parametrize("constant", [0.0, 3.3, 1e30])
def test_a_constant_has_correlation_zero(metric, constant):
    values = np.array([1.0, 2.0, 5.0])
    assert compute(metric, values, np.full(3, constant), None) == 0.0
    assert compute(metric, np.full(3, constant), values, None) == 0.0


def test_a_correlation_does_not_see_scale():
    values, other = np.array([1.0, 2.0, 5.0]), np.array([2.0, 1.0, 4.0])
    for scale in (1e-200, 1e200):
        assert compute("pearson", values, scale * other, None) == pytest.approx(compute("pearson", values, other, None))


def test_rounding_noise_is_a_constant():
    # Just around 1 with a spread below float64 rounding of sums: scipy would warn and return noise.
    noisy = 1.0 + np.array([0, 1, 2, 1]) * 2.3e-16
    assert compute("pearson", np.arange(4.0), noisy, None) == 0.0


@pytest.mark.parametrize("predicted", [0, 1])
def test_one_class_only(predicted):
    found = details(np.zeros(4, int), np.full(4, predicted), 2)
    right = float(predicted == 0)
    expected = {
        "accuracy": right,
        "f1": 0.0,
        "accuracy_f1": right / 2,
        # With right predictions class 1 is neither a target nor predicted: left out of the mean.
        "macro_f1": right,
        "matthews": 0.0,
    }
    assert {name: found[name] for name in expected} == expected


def test_details_fit_the_task():
    classes = {"accuracy", "macro_f1", "matthews"}
    assert set(details(TARGETS, PREDICTED, 2)) >= {*classes, "f1", "accuracy_f1"}
    found = set(details(TARGETS, PREDICTED, 3))
    assert found >= classes
    assert not found & {"f1", "accuracy_f1"}
    values = {"pearson", "spearman", "pearson_spearman"}
    found = set(details(np.arange(3.0), np.arange(3.0), None))
    assert found >= values
    assert not found & classes


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_an_error_that_counts_the_rows(bad):
    with pytest.raises(UserError, match="1 of 3 rows"):
        compute("pearson", np.arange(3.0), np.array([0, bad, 1.0]), None)


def test_nothing_to_compute_from():
    with pytest.raises(UserError, match="0 rows"):
        compute("accuracy", np.array([], int), np.array([], int), 2)


def test_f1_needs_two_labels():
    with pytest.raises(UserError, match="macro_f1"):
        compute("f1", TARGETS, PREDICTED, 3)
