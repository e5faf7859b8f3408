"""The statistics of a study: right numbers, honest intervals, refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ortholora.errors import UserError
from ortholora.files import plain
from ortholora.study.statistics.bootstrap import ratio_interval, seed_weights
from ortholora.study.statistics.summarise import summarise
from synthetic_study import methods_and_tasks, record, study


def summary_of(records, resamples=200, seed=0):
    return summarise(records, **methods_and_tasks(records), resamples=resamples, seed=seed)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_seed_weights_sum_to_one_and_give_the_variance_of_a_mean(seeds):
    weights = seed_weights(np.random.default_rng(0), 40_000, seeds)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    values = np.random.default_rng(1).normal(size=seeds)
    expected = values.var(ddof=1) / seeds if seeds > 1 else 0.0
    assert (weights @ values).var() == pytest.approx(expected, rel=0.05)


def test_a_resample_without_gap_can_only_widen_the_interval():
    generator = np.random.default_rng(0)
    gap = generator.normal(3, 1, 1000)
    gain = 0.5 * gap + generator.normal(0, 0.1, 1000)
    bad = np.argsort(gap)[:20]
    clean = ratio_interval(gain, np.abs(gap))
    gap[bad], gain[bad] = -1e-9, 1.0
    low, high = ratio_interval(gain, gap)
    assert np.isfinite([low, high]).all()
    assert low <= clean[0] < 0.5 < clean[1] <= high


# ---------------------------------------------------------------- summaries


def test_schema():
    records = study(np.random.default_rng(0), skill={"single": 0.9, "joint": 0.6, "ortho": 0.7, "b": 0.6})
    summary = summary_of(records)
    assert plain(summary) == summary, "plain JSON data only"
    json.dumps(summary, allow_nan=False)
    columns = ["task0", "task1", "average"]
    assert list(summary["methods"]) == ["single", "joint", "ortho", "b"]
    for method in summary["methods"].values():
        assert list(method) == columns
        for column in method.values():
            assert set(column) == {"mean", "std", "values"}
            assert len(column["values"]) == 3
    assert set(summary["gap"]) == set(summary["recovered"]) == {"mean", "ci95"}
    assert summary["recovered_reason"] is None
    assert summary["recovered_method"] == "ortho"
    assert set(summary["rules"]) == {"ortho", "b"}
    for rule in summary["rules"].values():
        assert {"difference", "recovered", "recovered_reason", "rule", "block"} <= set(rule)
    assert summary["recovered"] == summary["rules"]["ortho"]["recovered"]
    for task in summary["tasks"].values():
        assert set(task) == {"metric", "rows", "scored_on", "gap", "difference"}
        assert set(task["difference"]) == {"ortho", "b"}
        assert task["rows"] == 400
    assert summary["seeds"] == [0, 1, 2]
    assert set(summary["cost"]) == set(summary["methods"])
    assert all(isinstance(sentence, str) for sentence in summary["verdict"] + summary["notes"])


def test_point_values_by_hand():
    ones = np.ones(4, int)
    right = {1.0: ones, 0.75: np.array([1, 1, 1, 0]), 0.5: np.array([1, 1, 0, 0]), 0.25: np.array([1, 0, 0, 0])}

    def runs(method, *accuracies):
        for seed, (a, b) in enumerate(accuracies):
            groups = [{"a": a}, {"b": b}] if method == "single" else [{"a": a, "b": b}]
            for group in groups:
                yield record(method, seed, dict.fromkeys(group, ones), {t: right[v] for t, v in group.items()})

    records = [
        *runs("single", (1.0, 1.0), (1.0, 0.5)),
        *runs("joint", (0.5, 0.5), (0.25, 0.25)),
        *runs("ortho", (0.75, 0.5), (0.75, 0.25)),
    ]
    summary = summary_of(records)
    single = summary["methods"]["single"]
    assert single["b"] == {"mean": 0.75, "std": pytest.approx(0.5 / 2**0.5), "values": [1.0, 0.5]}
    assert single["average"]["values"] == [1.0, 0.75]
    assert summary["gap"]["mean"] == pytest.approx(0.875 - 0.375)
    assert summary["rules"]["ortho"]["difference"]["mean"] == pytest.approx(0.5625 - 0.375)
    assert summary["tasks"]["a"]["difference"]["ortho"]["mean"] == pytest.approx(0.75 - 0.375)
    assert summary["tasks"]["b"]["gap"]["mean"] == pytest.approx(0.75 - 0.375)


def test_known_gap_and_recovery():
    summary = summary_of(study(np.random.default_rng(1), rows=1500))
    low, high = summary["gap"]["ci95"]
    assert 0 < low < 0.10 < high
    low, high = summary["recovered"]["ci95"]
    assert 0 < low < 0.5 < high < 1
    assert summary["recovered"]["mean"] == pytest.approx(
        summary["rules"]["ortho"]["difference"]["mean"] / summary["gap"]["mean"]
    )
    assert summary["verdict"][0].startswith("single is surely better than joint")
    assert "ortho is surely better than joint" in summary["verdict"][1]


def test_no_gap_has_a_reason_and_no_share():
    records = study(np.random.default_rng(2), skill=dict.fromkeys(["single", "joint", "ortho"], 0.75))
    summary = summary_of(records)
    assert summary["recovered"] is None
    assert summary["rules"]["ortho"]["recovered"] is None
    assert summary["recovered_reason"].startswith("single is not surely better than joint (gap ")
    assert summary["recovered_reason"].endswith("there is no gap to recover")
    assert not any("recovers" in sentence for sentence in summary["verdict"])


def test_a_negative_gap_is_said():
    skill = {"single": 0.6, "joint": 0.8, "ortho": 0.8}
    summary = summary_of(study(np.random.default_rng(3), skill=skill))
    assert summary["verdict"][0].startswith("joint is surely better than single")
    assert summary["recovered"] is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_identical_methods_differ_by_exactly_nothing(seeds):
    records = study(np.random.default_rng(4), seeds=seeds)
    twin = [dataclasses.replace(r, method="ortho") for r in records if r.method == "joint"]
    records = [r for r in records if r.method != "ortho"] + twin
    summary = summary_of(records)
    nothing = {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert summary["rules"]["ortho"]["difference"] == nothing
    assert all(task["difference"]["ortho"] == nothing for task in summary["tasks"].values())
    assert summary["recovered"] == nothing
    assert "neither surely better nor surely worse" in summary["verdict"][1]


def test_same_seed_same_result_whatever_the_order_of_the_records():
    records = study(np.random.default_rng(5))
    names = methods_and_tasks(records)
    once = summarise(records, **names, resamples=100, seed=7)
    assert once == summarise(records[::-1], **names, resamples=100, seed=7)
    assert once["gap"]["ci95"] != summarise(records, **names, resamples=100, seed=8)["gap"]["ci95"]


def test_one_more_rule_changes_no_other_interval():
    records = study(np.random.default_rng(6))
    more = [dataclasses.replace(r, method="twin") for r in records if r.method == "ortho"]
    with_more = summary_of(records + more)
    assert with_more["rules"]["ortho"] == summary_of(records)["rules"]["ortho"] == with_more["rules"]["twin"]


def test_one_seed_resamples_rows_and_says_so():
    summary = summary_of(study(np.random.default_rng(7), seeds=1))
    assert summary["methods"]["joint"]["average"]["std"] is None
    low, high = summary["gap"]["ci95"]
    assert low < high
    assert len([sentence for sentence in summary["verdict"] if "one seed" in sentence or "advised" in sentence]) == 1
    assert any("luck of a seed" in sentence for sentence in summary["notes"])


def test_every_task_is_named_in_the_verdict():
    ones = np.ones(300, int)
    half = np.tile([0, 1], 150)
    better, worse, same = {"up": half, "down": ones, "flat": half}, {"up": ones, "down": half}, half
    records = [record("single", 0, {t: ones}, {t: ones}) for t in better]
    records.append(record("joint", 0, dict.fromkeys(better, ones), better))
    records.append(record("ortho", 0, dict.fromkeys(better, ones), {**worse, "flat": same}))
    verdict = summary_of(records)["verdict"]
    assert "ortho is surely better than joint on up." in verdict
    assert "ortho is surely worse than joint on down." in verdict
    assert "ortho does not surely help or hurt on flat." in verdict


def test_cost_of_single_is_the_sum_of_times_and_the_largest_memory():
    cost = summary_of(study(np.random.default_rng(8), tasks=3, rows=50))["cost"]
    assert cost["single"]["step_seconds"] == pytest.approx(0.3)
    assert cost["single"]["relative_step_seconds"] == pytest.approx(1.5)
    assert cost["single"]["peak_memory_bytes"] == 100 * 2**20
    assert cost["single"]["relative_peak_memory"] == pytest.approx(0.5)
    assert [cost[method]["adapters"] for method in ("single", "joint", "ortho")] == [3, 1, 1]


def test_memory_that_was_not_measured_has_no_ratio():
    records = [dataclasses.replace(r, peak_memory_bytes=0) for r in study(np.random.default_rng(8), rows=50)]
    assert summary_of(records)["cost"]["single"]["relative_peak_memory"] is None


def test_regression_and_classification_together():
    generator = np.random.default_rng(9)
    scores, classes = generator.normal(size=200), generator.integers(0, 3, 200)
    records = []
    for method in ("single", "joint", "ortho"):
        noisy = scores + generator.normal(size=200)
        guess = np.where(generator.random(200) < 0.7, classes, 0)
        first = record(method, 0, {"sts": scores}, {"sts": noisy}, "pearson_spearman", None)
        second = record(method, 0, {"nli": classes}, {"nli": guess}, "matthews", 3)
        if method == "single":
            records += [first, second]
            continue
        joined = {
            name: {**getattr(first, name), **getattr(second, name)}
            for name in ("metrics", "metric_names", "targets", "predictions", "num_labels")
        }
        records.append(dataclasses.replace(first, tasks=("sts", "nli"), **joined))
    summary = summary_of(records)
    for task in ("sts", "nli"):
        low, high = summary["tasks"][task]["gap"]["ci95"]
        assert low < summary["tasks"][task]["gap"]["mean"] < high


def test_intervals_cover_the_truth():
    hits = {"gap": 0, "difference": 0, "recovered": 0, "with gap": 0}
    studies = 40
    for index in range(studies):
        # Two seeds that differ by more than the rows do: the hard case.
        records = study(np.random.default_rng(100 + index), seeds=2, rows=200, seed_spread=0.03)
        summary = summary_of(records, resamples=100, seed=index)
        low, high = summary["gap"]["ci95"]
        hits["gap"] += low <= 0.10 <= high
        low, high = summary["rules"]["ortho"]["difference"]["ci95"]
        hits["difference"] += low <= 0.05 <= high
        if summary["recovered"] is not None:
            hits["with gap"] += 1
            low, high = summary["recovered"]["ci95"]
            hits["recovered"] += low <= 0.5 <= high
    assert hits["gap"] >= 0.8 * studies
    assert hits["difference"] >= 0.8 * studies
    assert hits["with gap"] >= 0.5 * studies
    assert hits["recovered"] >= 0.8 * hits["with gap"]


# ---------------------------------------------------------------- refusals


@pytest.fixture
def records():
    return study(np.random.default_rng(10), rows=20, seeds=2)


def test_missing_records_are_named(records):
    kept = [r for r in records if (r.method, r.seed, r.tasks) != ("single", 1, ("task0",))]
    with pytest.raises(UserError, match="no record of single, seed 1, task task0\n"):
        summarise(kept, methods=["single", "joint", "ortho"], tasks=["task0", "task1"], resamples=100, seed=0)


def test_no_record_at_all():
    with pytest.raises(UserError, match="no record at all"):
        summarise([], methods=["single", "joint"], tasks=["a"], resamples=100, seed=0)


def test_duplicate_records_are_named(records):
    with pytest.raises(UserError, match="two records of joint, seed 0, task task0"):
        summary_of([*records, next(r for r in records if r.method == "joint")])


def test_single_and_joint_are_needed(records):
    with pytest.raises(UserError, match="no method `single`"):
        summarise(records, methods=["joint", "ortho"], tasks=["task0"], resamples=100, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {"task0": np.zeros(20, int)}}, "evaluated on different rows"),
        ({"metric_names": {"task0": "matthews"}}, "evaluated with different metrics"),
        ({"num_labels": {"task0": 3}}, "different numbers of labels"),
        ({"metrics": {"task0": 0.123}}, "metric and predictions do not belong together"),
        ({"metrics": {"task0": float("nan")}}, "metric and predictions do not belong together"),
    ],
)
def test_records_that_cannot_be_compared(records, change, message):
    first = records[0]
    assert first.tasks == ("task0",)
    with pytest.raises(UserError, match=message):
        summary_of([dataclasses.replace(first, **change), *records[1:]])


def test_a_subset_of_methods_and_tasks(records):
    summary = summarise(records, methods=["single", "joint"], tasks=["task1"], resamples=100, seed=0)
    assert summary["recovered"] is None
    assert summary["recovered_reason"] == "no rule was compared"
    assert list(summary["tasks"]) == ["task1"]


def test_the_headline_is_about_the_first_rule_listed_and_never_about_a_baseline():
    skill = {"single": 0.9, "joint": 0.6, "joint-wide": 0.8, "b": 0.7, "ortho": 0.7}
    records = study(np.random.default_rng(0), skill=skill)
    wide = [dataclasses.replace(r, rule=None, block=None) if r.method == "joint-wide" else r for r in records]
    for methods, expected in ((list(skill), "b"), (["single", "joint", "ortho", "b", "joint-wide"], "ortho")):
        summary = summarise(wide, methods=methods, tasks=["task0", "task1"], resamples=100, seed=0)
        assert summary["recovered_method"] == expected
        assert summary["rules"]["joint-wide"]["recovered"] is not None
    alone = summarise(wide, methods=["single", "joint", "joint-wide"], tasks=["task0"], resamples=100, seed=0)
    assert alone["recovered_method"] is None
