"""How fast a run goes: rows and tokens counted on the host, evaluations and checkpoints left out of the time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import workspaces
from ortholora.runs import progress as module
from ortholora.runs.progress import ProgressCallback, Silent
from ortholora.runs.run import Run
from ortholora.runs.speed import Meter, Speed
from ortholora.runs.train import train_run
from workspaces import ORTHO, TASKS


class Recorder(Silent):
    def __init__(self) -> None:
        self.speeds: list[Speed] = []

    def show(self, speed: Speed) -> None:
        self.speeds.append(speed)


def test_a_run_tells_its_rows_its_tokens_and_the_last_logged_loss(tmp_path: Path) -> None:
    recorder = Recorder()
    space = workspaces.workspace(training={"steps": 4, "log_every": 2})
    train_run(Run(ORTHO, TASKS, 0, tmp_path), space, recorder)
    assert len(recorder.speeds) == 4
    assert [speed.loss is None for speed in recorder.speeds] == [True, True, False, False]
    assert recorder.speeds[0].rows * recorder.speeds[0].seconds == pytest.approx(sum(space.quota().values()))
    lengths = [length for task in TASKS for length in space.encoded(task).train.lengths]
    tokens_a_row = recorder.speeds[-1].tokens / recorder.speeds[-1].rows
    assert min(lengths) < tokens_a_row < max(lengths)  # real ones, without padding


def test_the_clock_stops_for_evaluations_and_checkpoints_and_not_for_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    now, recorder = [0.0], Recorder()
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    callback = ProgressCallback(recorder)
    callback.passed = np.zeros(2, dtype=np.int64)
    args: Any = SimpleNamespace(world_size=2)
    state: Any = SimpleNamespace(global_step=1, max_steps=9)
    control: Any = SimpleNamespace()

    def step() -> None:
        callback.on_step_begin(args, state, control)
        now[0] += 1
        callback.passed += np.array([8, 100])
        callback.on_step_end(args, state, control)

    step()
    now[0] += 3  # loading rows
    step()
    callback.on_evaluate(args, state, control)
    callback.on_save(args, state, control)
    now[0] += 1000
    step()
    assert recorder.speeds[0] == Speed(rows=16, tokens=200, seconds=1, loss=None)
    assert recorder.speeds[1] == Speed(rows=32 / 5, tokens=400 / 5, seconds=2.5, loss=None)
    assert recorder.speeds[2] == Speed(rows=48 / 6, tokens=600 / 6, seconds=2, loss=None)


def test_old_steps_are_forgotten() -> None:
    meter = Meter()
    meter.add(1000.0, 1, 1)
    for _ in range(50):
        meter.add(1.0, 4, 40)
    assert meter.speed(0.5) == Speed(rows=4, tokens=40, seconds=1, loss=0.5)
