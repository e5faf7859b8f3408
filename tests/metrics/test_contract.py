"""What every metric of the table promises. A new metric is tested here by its line in the table."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ortholora.metrics.compute import compute, details, resampled
from ortholora.metrics.table import METRICS, Metric, default, fitting

BINARY = fitting("classes")
CLASSES = [name for name in BINARY if not METRICS[name].two_labels]
VALUES = fitting("values")
ANSWERS = fitting("answers")
#: Every metric with a number of labels that it takes.
CASES = [(name, 2) for name in BINARY] + [(name, 4) for name in CLASSES] + [(name, None) for name in VALUES + ANSWERS]


def rows_of(metric: str, num_labels: int | None, rows: int = 40, runs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Targets `[rows]` and the predictions of runs `[runs, rows]` that are right more often than by chance."""
    generator = np.random.default_rng(rows)
    if num_labels is not None:
        targets = generator.integers(0, num_labels, rows)
        guesses = generator.integers(0, num_labels, (runs, rows))
        return targets, np.where(generator.random((runs, rows)) < 0.6, targets, guesses)
    if METRICS[metric].compares == "values":
        targets = generator.normal(size=rows)
        return targets, targets + 0.5 * generator.normal(size=(runs, rows))  # better than chance, for R², too
    weights = generator.integers(1, 9, rows).astype(float)
    return weights, weights * generator.random((runs, rows))


def perfect(metric: str, targets: np.ndarray) -> np.ndarray:
    """Predictions that are all right; likelihoods of 1 are losses of 0."""
    if METRICS[metric].compares != "answers":
        return targets
    return targets if METRICS[metric].generates else np.zeros(len(targets))


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_a_file_of_its_name(name):
    assert METRICS[name].implementation().__name__ == f"ortholora.metrics.{name}"
    assert METRICS[name].implementation().__doc__


@pytest.mark.parametrize(
    ("generates", "missing"), [(False, ["value", "resampled"]), (True, ["value", "resampled", "score_rows", "check"])]
)
def test_a_file_without_one_of_the_functions_is_named(monkeypatch, generates, missing):
    file = ModuleType("kappa")
    monkeypatch.setitem(sys.modules, "ortholora.metrics.kappa", file)
    metric = Metric("kappa", "answers" if generates else "classes", generates=generates)
    for name in missing:
        with pytest.raises(AssertionError, match=rf"metric `kappa`: metrics/kappa.py does not define {name}"):
            metric.implementation()
        setattr(file, name, lambda: None)
    assert metric.implementation() is file


@pytest.mark.parametrize("compares", ["classes", "values", "answers"])
def test_one_metric_of_a_kind_is_its_default_and_needs_nothing_special(compares):
    defaults = [METRICS[name] for name in fitting(compares) if METRICS[name].default]
    assert [metric.name for metric in defaults] == [default(compares)]
    assert not defaults[0].two_labels
    assert not defaults[0].generates


def test_details_are_all_metrics_that_fit():
    targets, predictions = rows_of("accuracy", 2)
    assert list(details(targets, predictions[0], 2)) == BINARY
    assert list(details(targets, predictions[0], 4)) == CLASSES
    assert list(details(targets, predictions[0], None)) == VALUES


# ---------------------------------------------------------------- point and resamples


@pytest.mark.parametrize(("metric", "num_labels"), CASES)
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_point_is_the_resample_that_draws_every_row_once(metric, num_labels, rows):
    targets, predictions = rows_of(metric, num_labels, rows)
    once = resampled(metric, targets, predictions, num_labels, np.ones((rows, 1)))
    points = [compute(metric, targets, run, num_labels) for run in predictions]
    assert once.shape == (3, 1)
    # To rounding: the two add up in different orders.
    assert once[:, 0].tolist() == pytest.approx(points, abs=1e-14)


@st.composite
def drawn(draw, values):
    """Targets, two runs' predictions and counts of equal sums, some of them degenerate."""
    rows = draw(st.integers(1, 12))
    array = st.lists(values, min_size=rows, max_size=rows).map(np.array)
    indices = st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)
    columns = [np.bincount(draw(indices), minlength=rows) for _ in range(3)]
    counts = np.stack([*columns, np.ones(rows)], axis=1).astype(float)
    return draw(array), np.stack([draw(array), draw(array)]), counts


def check_against_expanded(metric, sample, num_labels):
    """A resample is the rows, each as often as it was drawn."""
    targets, predictions, counts = sample
    fast = resampled(metric, targets, predictions, num_labels, counts)
    for run in range(len(predictions)):
        for column in range(counts.shape[1]):
            rows = np.repeat(np.arange(len(targets)), counts[:, column].astype(int))
            slow = compute(metric, targets[rows], predictions[run][rows], num_labels)
            assert -1 <= slow <= 1
            assert fast[run, column] == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize("metric", BINARY)
@settings(max_examples=15, deadline=None)
@given(sample=drawn(st.integers(0, 1)))
def test_binary_metrics_from_counts(metric, sample):
    check_against_expanded(metric, sample, 2)


@pytest.mark.parametrize("metric", CLASSES)
@settings(max_examples=20, deadline=None)
@given(sample=drawn(st.integers(0, 3)))
def test_multiclass_metrics_from_counts(metric, sample):
    check_against_expanded(metric, sample, 4)


@pytest.mark.parametrize("metric", VALUES)
@settings(max_examples=40, deadline=None)
@given(
    # Few distinct values: ties and constants are the rule. Or many, on a grid coarse enough to have no
    # near-constants, where scipy itself loses its digits.
    sample=drawn(st.sampled_from([-1.5, 0.0, 2.0])) | drawn(st.integers(-1000, 1000).map(lambda n: n / 8)),
    scale=st.sampled_from([1.0, 1e-120, 1e150]),
)
def test_correlations_from_counts(metric, sample, scale):
    targets, predictions, counts = sample
    check_against_expanded(metric, (targets, predictions * scale, counts), None)


@pytest.mark.parametrize("metric", ANSWERS)
@settings(max_examples=15, deadline=None)
@given(sample=drawn(st.integers(1, 9)), low=st.sampled_from([0.0, 0.5]))
def test_metrics_of_written_answers_from_counts(metric, sample, low):
    weights, draws, counts = sample
    # Scores between 0 and 1, times the weights.
    check_against_expanded(metric, (weights, weights * (low + (1 - low) * (draws - 1) / 8), counts), None)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(("metric", "num_labels"), CASES)
def test_one_is_perfect_and_nothing_is_better(metric, num_labels):
    targets, predictions = rows_of(metric, num_labels)
    assert compute(metric, targets, perfect(metric, targets), num_labels) == pytest.approx(1, abs=1e-14)
    assert all(0 < compute(metric, targets, run, num_labels) < 1 for run in predictions)


@pytest.mark.parametrize(("metric", "num_labels"), CASES)
def test_the_order_of_the_rows_is_nothing_to_a_metric(metric, num_labels):
    targets, predictions = rows_of(metric, num_labels)
    order = np.random.default_rng(0).permutation(len(targets))
    value = compute(metric, targets, predictions[0], num_labels)
    assert compute(metric, targets[order], predictions[0][order], num_labels) == pytest.approx(value, abs=1e-14)


@pytest.mark.parametrize(("metric", "num_labels"), CASES)
@pytest.mark.parametrize("constant", ["targets", "predictions", "both"])
def test_one_class_and_constants_have_a_value(metric, num_labels, constant):
    """A warning would fail this test, as any does."""
    targets, predictions = (values.copy() for values in rows_of(metric, num_labels))
    if constant != "predictions":
        targets[:] = targets[0]
        predictions = np.minimum(predictions, targets) if METRICS[metric].compares == "answers" else predictions
    if constant != "targets":
        predictions[:] = predictions.min()
    counts = np.ones((len(targets), 2))
    fast = resampled(metric, targets, predictions, num_labels, counts)
    for run, both in zip(predictions, fast, strict=True):
        value = compute(metric, targets, run, num_labels)
        assert math.isfinite(value)
        assert -1 <= value <= 1
        assert both.tolist() == pytest.approx([value, value], abs=1e-14)


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        ("accuracy", accuracy_score),
        ("f1", f1_score),
        ("macro_f1", lambda *both: f1_score(*both, average="macro")),
        ("matthews", matthews_corrcoef),
        ("pearson", lambda *both: pearsonr(*both).statistic),
        ("spearman", lambda *both: spearmanr(*both).statistic),
    ],
)
def test_definitions_are_those_of_scikit_learn_and_scipy(metric, theirs):
    num_labels = 2 if METRICS[metric].compares == "classes" else None
    targets, predictions = rows_of(metric, num_labels, rows=200)
    drawn_rows = np.random.default_rng(1).integers(0, 200, 200)
    counts = np.bincount(drawn_rows, minlength=200).astype(float)[:, None]
    values = resampled(metric, targets, predictions, num_labels, counts)
    for run, value in zip(predictions, values, strict=True):
        assert compute(metric, targets, run, num_labels) == pytest.approx(theirs(targets, run), abs=1e-14)
        assert value[0] == pytest.approx(theirs(targets[drawn_rows], run[drawn_rows]), abs=1e-12)
