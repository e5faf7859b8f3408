"""The best checkpoint by a weighted mean or by the worst task; a task that stops while the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import TrainingArguments

import workspaces
from ortholora.config.choose import with_tasks
from ortholora.data.mixing import StepSampler
from ortholora.data.planner import Planner
from ortholora.errors import UserError
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.record import read_record
from ortholora.runs.run import Run
from ortholora.runs.train import ensure_record
from ortholora.trainers.selection import Selection, TaskPatience, check_patience
from ortholora.trainers.trainer import OrthoTrainer
from workspaces import ORTHO, TASKS

#: Step → the metric of every task then: `topic` gets worse after step 2, `pair` after step 6.
COURSE = {2: (0.9, 0.1, 0.2), 4: (0.3, 0.2, 0.3), 6: (0.2, 0.3, 0.4), 8: (0.2, 0.2, 0.5)}


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[float, ...]]:
    """What the evaluations find; to be changed by the test."""
    course = dict(COURSE)
    own = OrthoTrainer._ask

    def found(self: OrthoTrainer, prefix: str, parts: Any) -> dict[str, float]:
        result = own(self, prefix, parts)
        metrics = course.get(self.state.global_step)
        return result | ({} if metrics is None else dict(zip((f"{prefix}_{t}" for t in TASKS), metrics, strict=True)))

    monkeypatch.setattr(OrthoTrainer, "_ask", found)
    return course


def test_scores_by_hand() -> None:
    metrics = {"a": 0.2, "b": 0.8}
    assert Selection().score(metrics) == pytest.approx(0.5)
    assert Selection("worst").score(metrics) == 0.2
    assert Selection(weights={"a": 3}).score(metrics) == pytest.approx((3 * 0.2 + 0.8) / 4)
    assert Selection(weights={"a": 0}).score(metrics) == 0.8
    assert Selection(weights={"a": 0}).score({"a": 0.2}) == 0.2  # a task alone that does not count


@pytest.mark.parametrize(
    ("settings", "best"),
    [({}, 2), ({"selection_by": "worst"}, 4), ({"selection_weights": {"topic": 0, "pair": 0}}, 8)],
    ids=str,
)
def test_the_best_checkpoint(course: Any, tmp_path: Path, settings: dict[str, Any], best: int) -> None:
    training = {"steps": 8, "eval_every": 2, "selection": "best", **settings}
    trainer = workspaces.trainer(tmp_path, training=training)
    trainer.train()
    assert trainer.state.best_global_step == best


def test_patience_by_hand() -> None:
    patience = TaskPatience(["a", "b"], 2)
    found = [(5, 1), (5, 2), (6, 2), (6, 2), (6, 9), (7, 9)]
    leaving = [patience.look(dict(zip("ab", map(float, pair), strict=True)), step) for step, pair in enumerate(found)]
    assert leaving == [[], [], [], ["b"], ["a"], []]  # b: not better at 2 and 3; a: not at 3 and 4
    assert patience.stopped == {"b": 3, "a": 4}
    assert patience.all_gone


def test_the_rows_of_the_others_stay_what_they_are() -> None:
    lengths, gone = [[3, 9, 4, 8], [30, 20, 25], [5] * 11], {1: 2}
    whole, fewer = (
        StepSampler(["a", "b", "c"], lengths, [2, 4, 3], 0, Planner("mixed", 7), gone=mapping) for mapping in ({}, gone)
    )
    for step in range(5):
        rows, left = (sorted(row for cut in each.step(step) for row in cut.rows) for each in (whole, fewer))
        cuts = fewer.step(step)
        assert left == (rows if step < 2 else [row for row in rows if row[0] != 1])
        assert cuts[0].weights == ((2, 4, 3) if step < 2 else (2, 0, 3))
        assert len(cuts) == (7 if step < 2 else 5)


TRAINING = {"steps": 8, "eval_every": 2, "save_every": 1, "log_every": 1, "patience_per_task": 1}


class StopAfter(Silent):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int) -> None:
        self.stop_requested = done >= self.at


def test_a_task_stops_and_the_others_go_on(course: Any, tmp_path: Path) -> None:
    """Its head stays as it was; and a run that was stopped between ends as one that was not."""
    space = workspaces.workspace(training=TRAINING)
    run = Run(ORTHO, TASKS, 0, tmp_path / "whole")
    with pytest.raises(Stopped):
        ensure_record(run, space, StopAfter(4), None)
    before = load_file(run.checkpoints / "checkpoint-4" / "heads.safetensors")
    ensure_record(run, space, Silent(), None)
    record = read_record(run.folder)
    assert record.stopped == {"topic": 4, "pair": 8}
    assert [step for step, _ in record.curves["loss"]["topic"]] == [1, 2, 3, 4]
    assert [step for step, _ in record.curves["loss"]["score"]] == list(range(1, 9))
    after = load_file(run.folder / "heads.safetensors")
    moved = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert moved == {"pair", "score"}

    other = Run(ORTHO, TASKS, 0, tmp_path / "cut")
    with pytest.raises(Stopped):
        ensure_record(other, space, StopAfter(5), None)
    ensure_record(other, space, Silent(), None)
    assert read_record(other.folder).stopped == record.stopped
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        assert (other.folder / name).read_bytes() == (run.folder / name).read_bytes()


def test_when_all_have_stopped_the_training_ends(course: Any, tmp_path: Path) -> None:
    """Also when it was killed before its result was written."""
    course |= dict.fromkeys(course, (0.5, 0.5, 0.5))
    space = workspaces.workspace(training=TRAINING)
    run = Run(ORTHO, TASKS, 0, tmp_path)
    record = ensure_record(run, space, Silent(), None)
    assert record.stopped == dict.fromkeys(TASKS, 4)
    before = (run.folder / "adapter_model.safetensors").read_bytes()
    (run.folder / "result.json").unlink()
    assert ensure_record(run, space, Silent(), None).stopped == record.stopped
    assert (run.folder / "adapter_model.safetensors").read_bytes() == before
    assert not (run.checkpoints / "checkpoint-5").exists()


def test_what_cannot_lose_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers of the loader"):
        check_patience(TrainingArguments(str(tmp_path), dataloader_num_workers=1, use_cpu=True, report_to=[]), [4])
    with pytest.raises(UserError, match="fewer rows than there are processes"):
        check_patience(TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]), [4, 0])
    with pytest.raises(UserError, match="workers of the loader"):
        workspaces.trainer(tmp_path, training={**TRAINING, "arguments": {"dataloader_num_workers": 1}})
    with pytest.raises(UserError, match=r"unknown task 'topics'(.|\n)*did you mean"):
        workspaces.workspace(training={"eval_every": 1, "selection": "best", "selection_weights": {"topics": 1}})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"selection_by": "worst"}, "selection: best"),
        ({"selection_weights": {"topic": 2}}, "selection: best"),
        ({"selection": "best", "eval_every": 1, "selection_by": "worst", "selection_weights": {"topic": 2}}, "both"),
        ({"selection": "best", "eval_every": 1, "selection_weights": {"topic": -1}}, "greater than or equal to 0"),
        ({"patience_per_task": 1}, "eval_every"),
    ],
    ids=str,
)
def test_settings_without_an_effect_are_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        workspaces.config(training=training)


def test_some_of_the_tasks_have_some_of_the_weights() -> None:
    """A run's own `config.yaml` loads and trains, also where it has fewer tasks than the study."""
    settings = workspaces.config(
        training={"eval_every": 1, "selection": "best", "selection_weights": {"topic": 2, "pair": 3}}
    )
    assert with_tasks(settings, ["pair", "score"]).training.selection_weights == {"pair": 3}
    assert Run(ORTHO, ("topic",), 0, Path()).own_config(settings).training.selection_weights == {"topic": 2}
