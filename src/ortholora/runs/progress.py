"""How a run tells what it is doing, without printing: the command line decides what is shown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ortholora.ranks.together import on_any
from ortholora.runs.speed import Meter, Speed


class RunProgress(Protocol):
    """What one run after another reports to."""

    def start(self, label: str, steps: int, done: int) -> None:
        """A run of `steps` steps begins, `done` of which a checkpoint has."""

    def step(self, done: int) -> None:
        """`done` steps of the run are done."""

    def show(self, speed: Speed) -> None:
        """How fast it goes, after a step."""

    def finish(self, label: str, metrics: dict[str, float]) -> None:
        """The run is finished."""


class RowProgress(Protocol):
    """What work on the rows of a file reports to."""

    #: Set from outside to stop after the rows that are being worked on.
    stop_requested: bool

    def start(self, label: str, rows: int, done: int) -> None:
        """Work on `rows` rows begins, `done` of which an earlier sitting has done."""

    def step(self, done: int) -> None:
        """`done` rows are done."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class Progress(RunProgress, Protocol):
    """What the runs of a command report to."""

    #: Set from outside to stop after the current step, with a checkpoint.
    stop_requested: bool

    def plan(self, runs: Sequence[tuple[str, int, bool]]) -> None:
        """The runs to come: label, number of tasks (its share of the work), and whether it is finished."""

    def note(self, text: str) -> None:
        """Something that a user should know before the runs begin."""

    def line(self) -> RunProgress:
        """A line of its own, for runs that go on at the same time as others."""


class Silent:
    """Reports to nobody."""

    stop_requested = False

    def plan(self, runs: Sequence[tuple[str, int, bool]]) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def start(self, label: str, steps: int, done: int) -> None:
        """Do nothing."""

    def step(self, done: int) -> None:
        """Do nothing."""

    def show(self, speed: Speed) -> None:
        """Do nothing."""

    def finish(self, label: str, metrics: dict[str, float]) -> None:
        """Do nothing."""

    def line(self) -> Silent:
        """Return itself."""
        return self


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """The run was stopped on request, after a checkpoint."""


class ProgressCallback(TrainerCallback):
    """Passes steps on, with how fast they are, and stops with a checkpoint when asked to.

    Attributes:
        passed: The trainer's count `[2]` of the rows and tokens that this process has trained on; None: not known.
    """

    def __init__(self, progress: Progress) -> None:
        self.passed: np.ndarray[Any, Any] | None = None
        self._progress = progress
        self._meter, self._before = Meter(), np.zeros(2, dtype=np.int64)
        self._since: float | None = None
        self._loss: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, unless it runs since the last step: loading the rows counts, too."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Keep the loss: to ask for it in every step would make the host wait."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock: this was no step."""
        self._since = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock: this was no step."""
        self._since = None

    def _measure(self, processes: int) -> None:
        if self.passed is None or self._since is None:
            return
        now = time.perf_counter()
        # Every process has about the same share of a step; to add up what they have would make them wait.
        rows, tokens = ((self.passed - self._before) * processes).tolist()
        self._meter.add(now - self._since, rows, tokens)
        self._before, self._since = self.passed.copy(), now
        self._progress.show(self._meter.speed(self._loss))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the step; on request save and stop."""
        self._progress.step(state.global_step)
        self._measure(args.world_size)
        # Whichever process was asked: all must stop after the same step.
        if on_any(self._progress.stop_requested) and state.global_step < state.max_steps:
            self._progress.stop_requested = True
            control.should_save = True
            control.should_training_stop = True
