"""A few steps of joint training, and of each task alone, with looks at the held-out rows on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ortholora.config.schema import Config
from ortholora.runs.build import build_trainer
from ortholora.runs.method import JOINT, SINGLE, Method
from ortholora.runs.progress import Progress, Silent, Stopped
from ortholora.runs.run import Run
from ortholora.runs.workspace import Workspace
from ortholora.study.diagnose.gradients import Gradients, HeldOut
from ortholora.study.diagnose.rows import Groups
from ortholora.study.diagnose.stored import Points
from ortholora.study.diagnose.transfer import measure_transfer

#: The number of the joint training; those of the tasks alone are 0, 1, …
JOINTLY = -1


def points_of(steps: int) -> list[int]:
    """The steps after which is looked: the start, and three points of the way."""
    return sorted({0, *(max(1, round(steps * share)) for share in (0.2, 0.6, 1.0) if steps)})


def gradient_points(steps: int) -> list[int]:
    """Those of them at which task gradients are measured: not the start, where only B has any, if there is more."""
    return [step for step in points_of(steps) if step or not steps]


def plain(config: Config) -> Config:
    """The configuration without what a few steps do not need: evaluations, checkpoints, logs in files."""
    keys = {"eval_every": 0, "save_every": 0, "selection": "last", "patience": 0, "report_to": []}
    keys |= {"selection_by": "mean", "selection_weights": {}, "patience_per_task": 0}
    keys["arguments"] = {key: value for key, value in config.training.arguments.items() if key != "report_to"}
    return config.model_copy(update={"training": config.training.model_copy(update=keys)})


class FewSteps:
    """Trains as the configuration says, schedule included, and stops after a few steps.

    Args:
        workspace: Its tasks' dev rows are the held-out rows.
        groups: How these are dealt to micro-batches.
        steps: Steps to take.
        seed: Seed of the training.
        points: Where finished points are kept.
        scratch: An empty folder that nobody keeps.
        progress: Is told what happens.
    """

    def __init__(
        self,
        workspace: Workspace,
        groups: Groups,
        steps: int,
        seed: int,
        points: Points,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self.workspace: Workspace = workspace
        self.groups: Groups = groups
        self.steps: int = steps
        self.seed: int = seed
        self.points: Points = points
        self.scratch: Path = scratch
        self.progress: Progress = progress
        self._names = [task.name for task in workspace.tasks]

    @property
    def trainings(self) -> list[int]:
        """The numbers of the trainings to do; with no steps alone is what jointly is."""
        return [JOINTLY, *(range(len(self._names)) if self.steps else ())]

    def label(self, training: int) -> str:
        """For people."""
        return "jointly" if training == JOINTLY else f"alone · {self._names[training]}"

    def stopped(self, training: int) -> Stopped:
        """What is raised where a training was stopped; it reads "Stopped in …"."""
        return Stopped(
            "the joint training" if training == JOINTLY else f"the training of {self._names[training]} alone"
        )

    def done(self, training: int) -> bool:
        """Whether all points of a training are finished."""
        return all(self.points.has(training, step) for step in points_of(self.steps))

    def ensure(self, training: int) -> None:
        """Do a training whose points are not all finished; finished points are kept.

        Raises:
            UserError: Settings that make no sense, or a loss that is not finite.
            Stopped: The progress asked to stop.
        """
        if self.done(training):
            return
        kept = sum(self.points.has(training, step) for step in points_of(self.steps))
        if kept:
            label = self.label(training)
            self.progress.note(
                f"{label}: {kept} of {len(points_of(self.steps))} points are kept; its steps start anew."
            )
        self.progress.start(self.label(training), self.steps, 0)
        trainer = self._trainer(training)
        held = HeldOut(trainer, self.groups)

        def look(step: int) -> None:
            if not self.points.has(training, step):
                self.points.save(training, step, self._look(held, training, step))

        callback = _Looks(look, points_of(self.steps), self.progress)
        trainer.add_callback(callback)
        if self.steps:
            trainer.train()
        else:
            trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
            look(0)
        if callback.stopped:
            raise self.stopped(training)
        self.progress.finish(self.label(training), {})

    def _trainer(self, training: int) -> Any:
        single = training != JOINTLY
        names = (self._names[training],) if single else tuple(self._names)
        run = Run(Method(SINGLE if single else JOINT), names, self.seed, self.scratch / f"run-{training + 1}")
        return build_trainer(run, self.workspace, Silent())

    def _look(self, held: HeldOut, training: int, step: int) -> dict[str, np.ndarray]:
        if training != JOINTLY or step not in gradient_points(self.steps):
            return {"losses": held.losses()}
        found = held.gradients()
        kept = _arrays(found)
        if step == self.steps:
            transfer = measure_transfer(held, found.halves)
            kept |= {"changes": transfer.changes, "predicted": transfer.predicted}
        return kept


class _Looks(TrainerCallback):
    """Looks at the points of the way, and ends the training at the last one."""

    def __init__(self, look: Callable[[int], None], points: Sequence[int], progress: Progress) -> None:
        self._look, self._points, self._progress = look, points, progress
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look before the first step."""
        self._look(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look after a step, where it is due."""
        step = state.global_step
        self._progress.step(step)
        if step in self._points:
            self._look(step)
        self.stopped = self._progress.stop_requested and step < self._points[-1]
        control.should_training_stop |= self.stopped or step >= self._points[-1]


def _arrays(found: Gradients) -> dict[str, np.ndarray]:
    return {
        "names": np.array(found.names),
        "layers": np.array(found.layers),
        "roles": np.array(found.roles),
        "gram": found.gram.astype(np.float32),
        "losses": found.losses,
    }
