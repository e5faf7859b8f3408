"""Experiment trackers: each run of ours is one of theirs, from its first step to its evaluation; also after a stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import workspaces
from ortholora.errors import MissingExtraError, UserError
from ortholora.runs import trackers
from ortholora.runs.arguments import training_arguments
from ortholora.runs.differences import differences
from ortholora.runs.folder import TRACKERS_FILE
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.provenance import fingerprint
from ortholora.runs.run import Run
from ortholora.runs.train import ensure_record
from ortholora.study.methods import methods_of
from ortholora.study.planning import plan
from ortholora.study.sweep.trials import plan_trials
from workspaces import JOINT, ORTHO, TASKS

STEPS = {"steps": 4, "log_every": 1, "save_every": 1, "report_to": ["wandb"]}


class StopAt(Silent):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int) -> None:
        self.stop_requested = done >= self.at


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a tracker that looks like Weights & Biases to transformers would hear, in order."""
    words: list[Any] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            words.append((args.run_name, state.global_step, dict(logs)))

    @contextmanager
    def session(run: Run, arguments: Any, known: str | None) -> Iterator[str]:
        words.append(("open", arguments.run_name, known))
        try:
            yield known or f"id of {arguments.run_name}"
        finally:
            words.append(("close", arguments.run_name))

    monkeypatch.setattr(trackers, "_is_installed", lambda name: True)
    monkeypatch.setitem(trackers._SESSIONS, "wandb", session)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Recorder)
    return words


@pytest.mark.parametrize(("rank", "opened"), [(0, ["open", "close"]), (1, [])])
def test_of_several_processes_the_first_opens_a_run(
    tmp_path: Path, heard: list[Any], monkeypatch: pytest.MonkeyPatch, rank: int, opened: list[str]
) -> None:
    monkeypatch.setattr(trackers, "rank", lambda: rank)
    arguments: Any = SimpleNamespace(report_to=["wandb"], run_name="mine")
    with trackers.tracked(Run(ORTHO, TASKS, 0, tmp_path, out=tmp_path), arguments):
        pass
    assert [word[0] for word in heard] == opened
    assert (tmp_path / TRACKERS_FILE).exists() == (rank == 0)


def test_a_run_is_one_run_of_the_tracker_with_all_figures(tmp_path: Path, heard: list[Any]) -> None:
    space = workspaces.workspace(training=STEPS)
    out = tmp_path / "study"
    for run in (
        Run(ORTHO, TASKS, 0, out / "runs" / "ortho" / "seed-0", out=out),
        Run(JOINT, TASKS, 1, out / "runs" / "joint" / "seed-1", out=out),
    ):
        ensure_record(run, space, Silent(), None)
    opened = [word for word in heard if word[0] == "open"]
    assert opened == [("open", "study/ortho/seed-0", None), ("open", "study/joint/seed-1", None)]
    first = heard[: heard.index(("close", "study/ortho/seed-0")) + 1]
    logs = [word for word in first if word[0] == "study/ortho/seed-0"]
    assert len(logs) == len(first) - 2
    figures = {key for _, _, entry in logs for key in entry}
    names = [f"{kind}/{task}" for kind in ("loss", "pace", "size") for task in TASKS]
    assert figures >= {*names, "conflict/topic-pair", "conflict_error/topic-pair", "conflict/negative_share"}
    assert "eval_average" in logs[-1][2]  # the evaluation after the training is of the same run
    assert {word[0] for word in heard[len(first) + 1 : -1]} == {"study/joint/seed-1"}


def test_a_stopped_run_goes_on_in_the_same_one(tmp_path: Path, heard: list[Any]) -> None:
    space = workspaces.workspace(training=STEPS)
    run = Run(ORTHO, TASKS, 0, tmp_path / "out")
    with pytest.raises(Stopped):
        ensure_record(run, space, StopAt(2), None)
    assert heard[-1] == ("close", "out")
    # Where the logs go decides nothing: the folder is still this run's with one tracker more, or fewer.
    ensure_record(run, workspaces.workspace(training={**STEPS, "log_every": 1}), Silent(), None)
    assert [word for word in heard if word[0] == "open"] == [("open", "out", None), ("open", "out", "id of out")]
    assert [step for name, step, entry in (w for w in heard if w[0] == "out") if "loss" in entry] == [1, 2, 3, 4]
    (run.folder / TRACKERS_FILE).write_text("{", encoding="utf-8")
    assert trackers._known(run.folder) == {}


def test_a_tracker_that_does_not_start_is_one_message_and_nothing_is_left(
    tmp_path: Path, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(*arguments: Any) -> Iterator[str]:
        raise ConnectionError("no route to host")
        yield ""

    monkeypatch.setitem(trackers._SESSIONS, "wandb", broken)
    with pytest.raises(UserError, match="The tracker wandb cannot be started") as caught:
        ensure_record(Run(JOINT, TASKS, 0, tmp_path / "out"), workspaces.workspace(training=STEPS), Silent(), None)
    assert "no route to host" in caught.value.found
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_one_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf'pip install "ortholora\[{name}\]"'):
        training_arguments(workspaces.config(training={"report_to": name}), tmp_path, 0, 8)


def test_a_folder_that_a_tracker_left_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_by_a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not trackers._is_installed("left_by_a_tracker")
    assert trackers._is_installed("json")


def test_the_old_key_is_read_as_the_new_one_and_old_folders_stay_known(tmp_path: Path) -> None:
    old, new = (workspaces.config(training=keys) for keys in ({"tensorboard": True}, {"report_to": "tensorboard"}))
    assert old.training.report_to == new.training.report_to == ["tensorboard"]
    assert old.model_dump() == new.model_dump()
    assert "report_to: tensorboard" in old.training.notes[0]
    assert not new.training.notes
    none, other = workspaces.config(), workspaces.config(training={"report_to": ["wandb", "mlflow", "wandb"]})
    assert other.training.report_to == ["wandb", "mlflow"]
    assert fingerprint(none, [], {}) == fingerprint(other, [], {})
    assert fingerprint(old, [], {}) == fingerprint(new, [], {}) != fingerprint(none, [], {})  # as earlier versions
    assert not differences(none, other)
    assert "training.tensorboard = False there, True here" in differences(none, new)


def test_every_run_of_a_study_has_a_name_of_its_own(tmp_path: Path) -> None:
    sweep = {"values": {"lora.r": [2, 4]}, "seeds": [100]}
    config = workspaces.config(study={"methods": ["ortho"], "seeds": [0, 1], "sweep": sweep})
    methods, out = methods_of(config), tmp_path / "glue"
    names = [run.title for run in (*plan_trials(config, methods, out), *plan(config, methods, out))]
    assert len(set(names)) == len(names)
    assert {"glue/single/seed-0/topic", "glue/ortho/seed-1"} <= set(names)
    assert any(name.startswith("glue/sweep/ortho/") for name in names)
    assert Run(ORTHO, TASKS, 0, tmp_path / "alone").title == "alone"
    assert replace(Run(ORTHO, TASKS, 0, out / "seed-3"), out=out).title == "glue/seed-3"
    assert trackers._unused("a", {"a", "a (2)"}) == "a (3)"


def test_a_name_of_the_users_own_stays(tmp_path: Path) -> None:
    given = {"run_name": "mine", "report_to": "none"}
    config = workspaces.config(training={"arguments": given})
    arguments = training_arguments(config, tmp_path, 0, 8)
    trackers.name_run(Run(ORTHO, TASKS, 0, tmp_path), arguments, given)
    assert arguments.run_name == "mine"
    assert trackers.names_in(arguments) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_real_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: one run for each of two, and the figures of conflicts in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before the import, which reads it
    pytest.importorskip(name)
    space = workspaces.workspace(training={"steps": 2, "log_every": 1, "save_every": 0, "report_to": [name]})
    for seed in (0, 1):
        ensure_record(Run(ORTHO, TASKS, seed, tmp_path / f"seed-{seed}"), space, Silent(), None)
    kept = [json.loads((tmp_path / f"seed-{seed}" / TRACKERS_FILE).read_text())[name] for seed in (0, 1)]
    assert len(set(kept)) == 2
    found = _READ[name](tmp_path)
    assert len(found) == 2
    for figures in found.values():
        assert any("conflict/topic-pair" in figure for figure in figures)
        assert any(figure in ("eval/average", "eval_average") for figure in figures)


def _of_wandb(folder: Path) -> dict[str, list[str]]:
    files = [path.read_bytes() for path in (folder / "wandb").glob("offline-run-*/*.wandb")]
    wanted = ("train/conflict/topic-pair", "eval/average")
    return {str(n): [name for name in wanted if name.encode() in file] for n, file in enumerate(files)}


def _of_mlflow(folder: Path) -> dict[str, list[str]]:
    import mlflow

    runs = mlflow.search_runs(experiment_names=["ortholora"], output_format="list")
    assert {run.info.status for run in runs} == {"FINISHED"}
    return {run.info.run_id: list(run.data.metrics) for run in runs}


def _of_trackio(folder: Path) -> dict[str, list[str]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = trackio.Api().runs("ortholora")
    return {r.id: [k for row in SQLiteStorage.get_logs("ortholora", r.name, run_id=r.id) for k in row] for r in runs}


_READ = {"wandb": _of_wandb, "mlflow": _of_mlflow, "trackio": _of_trackio}


def test_a_configuration_names_them_in_one_word_or_a_list() -> None:
    assert workspaces.config(training={"report_to": "trackio"}).training.report_to == ["trackio"]
    with pytest.raises(UserError, match="wandbb"):
        workspaces.config(training={"report_to": ["wandbb"]})
