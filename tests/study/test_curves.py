"""Curves of a study: drawn over seeds, and read: is a task not learned yet under joint training, or does it overfit?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ortholora.runs.measure import curves_of
from ortholora.runs.record import read_record, write_record
from ortholora.study.report.curves import curve_sentences
from ortholora.study.report.markdown import to_markdown
from ortholora.study.report.write import write_summary
from ortholora.study.statistics.summarise import summarise
from synthetic_study import methods_and_tasks, study

STEPS = list(range(10, 110, 10))


def with_curves(records, final):
    """Give every record falling losses that end at `final[method]`, with some noise over the seeds."""
    generator = np.random.default_rng(0)

    def curves(record):
        end = final[record.method]
        noise = 1 + 0.02 * generator.normal(size=len(STEPS))
        values = [*np.geomspace(0.7, end, len(STEPS) - 2).tolist(), end, end]
        loss = {
            task: [(s, float(v * n)) for s, v, n in zip(STEPS, values, noise, strict=True)] for task in record.tasks
        }
        return {"loss": loss, "metric": {}}

    return [dataclasses.replace(record, curves=curves(record)) for record in records]


def summary_of(records):
    return summarise(records, **methods_and_tasks(records), resamples=100, seed=0)


@pytest.mark.parametrize(
    ("joint", "case", "words"),
    [
        (0.69, "behind", "Joint training has not learned task0 yet"),
        (0.12, "learned", "has learned task0, and generalises worse"),
    ],
)
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_two_cases_are_told_apart(joint, case, words, seeds):
    skill = {"single": 0.95, "joint": 0.6, "ortho": 0.7}
    records = study(np.random.default_rng(0), skill=skill, seeds=seeds)
    summary = summary_of(with_curves(records, {"single": 0.12, "joint": joint, "ortho": 0.4}))
    ending = summary["endings"]["task0"]
    assert ending["case"] == case
    assert ending["ratio"] == pytest.approx(joint / 0.12, rel=0.05)
    assert any(words in sentence for sentence in summary["verdict"])


def test_where_seeds_disagree_it_says_so():
    records = study(np.random.default_rng(0), skill={"single": 0.95, "joint": 0.6}, seeds=3)
    # Joint escapes with one seed of three: the mean is far above single's, and nothing is sure.
    parts = [with_curves([r], {"single": 0.12, "joint": 0.1 if r.seed == 1 else 0.69})[0] for r in records]
    summary = summary_of(parts)
    assert summary["endings"]["task0"]["case"] == "unsure"
    assert "not sure" in " ".join(curve_sentences(summary))


@pytest.mark.parametrize(
    ("start", "single", "joint", "case"),
    [
        (3.0, 2.0, 2.8, "behind"),  # a ratio of 1.4 only, and four fifths of the way to go
        (0.7, 0.001, 0.01, "learned"),  # a ratio of 10, and nothing left to learn
        (0.7, 0.699, 0.7, "unsure"),  # single has not learned it either
    ],
)
def test_what_is_left_is_judged_by_where_it_began(start, single, joint, case):
    records = study(np.random.default_rng(0), skill={"single": 0.95, "joint": 0.6}, seeds=3)
    ends = {"single": single, "joint": joint}
    parts = []
    for record in records:
        curve = [(10, start), (90, ends[record.method]), (100, ends[record.method])]
        parts.append(dataclasses.replace(record, curves={"loss": dict.fromkeys(record.tasks, curve)}))
    ending = summary_of(parts)["endings"]["task0"]
    assert ending["case"] == case
    assert ending["start"] == pytest.approx(start)
    if case != "unsure":
        assert ending["share"] == pytest.approx((start - joint) / (start - single))


def test_a_task_without_a_gap_gets_no_sentence():
    records = study(np.random.default_rng(0), skill={"single": 0.7, "joint": 0.7})
    summary = summary_of(with_curves(records, {"single": 0.12, "joint": 0.69}))
    assert curve_sentences(summary) == []


def test_the_curve_is_the_mean_over_seeds_at_common_steps():
    records = study(np.random.default_rng(0), skill={"single": 0.9, "joint": 0.7}, seeds=2)
    parts = []
    for record in records:
        curve = [(10, 1.0 + record.seed), (20, 0.5)] if record.seed == 0 else [(10, 1.0 + record.seed)]
        parts.append(dataclasses.replace(record, curves={"loss": dict.fromkeys(record.tasks, curve)}))
    entry = summary_of(parts)["curves"]["loss"]["task0"]["joint"]
    assert entry == {"steps": [10.0], "mean": [1.5], "low": [1.0], "high": [2.0]}


def test_they_are_drawn_and_linked(tmp_path):
    records = study(np.random.default_rng(0))
    summary = summary_of(with_curves(records, {"single": 0.1, "joint": 0.6, "ortho": 0.3}))
    write_summary(tmp_path, summary)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "(curves.png)" in to_markdown(summary)
    write_summary(tmp_path / "none", summary_of(records))  # records of an older version have none
    assert not (tmp_path / "none" / "curves.png").exists()


def test_a_record_keeps_its_curves_and_one_of_before_is_still_read(tmp_path):
    record = with_curves(study(np.random.default_rng(0))[:1], {"single": 0.1})[0]
    write_record(tmp_path, record)
    assert read_record(tmp_path).curves == record.curves
    path = tmp_path / "result.json"
    before, _, _ = path.read_text().partition('"curves"')
    path.write_text(before.rstrip().rstrip(",") + "}")
    assert read_record(tmp_path).curves == {}


def test_the_log_history_becomes_curves():
    history = [
        {"loss": 1.0, "loss/a": 0.5, "step": 2},
        {"eval_a": 0.8, "eval_a/f1": 0.7, "step": 2},
        {"loss": 0.9, "loss/a": 0.4, "loss/b": 0.3, "step": 4},
        {"train_runtime": 1.0},
    ]
    assert curves_of(history, ["a", "b"]) == {
        "loss": {"a": [(2, 0.5), (4, 0.4)], "b": [(4, 0.3)]},
        "metric": {"a": [(2, 0.8)], "b": []},
    }
