"""Which settings each method gets: those with the best mean metric on the rows cut off for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ortholora.errors import UserError, listing
from ortholora.runs.method import Method
from ortholora.runs.record import RunRecord
from ortholora.runs.run import Run
from ortholora.study.sweep.values import Settings, shown

#: Name of the mean over tasks among the scores.
AVERAGE = "average"


@dataclass(frozen=True)
class Score:
    """What a method reached with some settings, on the cut rows.

    Attributes:
        settings: The settings.
        tasks: Task → its metric, mean over the sweep's seeds; None where a run's loss or metric is not finite.
    """

    settings: Settings
    tasks: dict[str, float | None]

    @property
    def average(self) -> float | None:
        """Mean over tasks."""
        return self.over(list(self.tasks))

    def over(self, tasks: Sequence[str]) -> float | None:
        """Mean over some of the tasks; None where one of them has no metric."""
        values = [value for task in tasks if (value := self.tasks[task]) is not None]
        return float(np.mean(values)) if len(values) == len(tasks) else None


@dataclass(frozen=True)
class Choice:
    """What a method gets.

    Attributes:
        method: Name of the method.
        scores: Its scores, in the order of the combinations.
        settings: Task → chosen settings for a method with several adapters, which chooses for each of them by itself;
            `average` → the settings for any other method.
    """

    method: str
    scores: list[Score]
    settings: dict[str, Settings]

    def of(self, task: str) -> Settings:
        """The settings of the run that trains a task."""
        return self.settings.get(task, self.settings.get(AVERAGE, {}))

    def as_json(self) -> dict[str, Any]:
        """Plain data for `sweep.json` and the summary."""
        scores = [{"settings": s.settings, "tasks": s.tasks, AVERAGE: s.average} for s in self.scores]
        return {"scores": scores, "chosen": self.settings}


def given_by(choices: Sequence[Choice], tasks: Sequence[str]) -> dict[str, dict[str, Settings]]:
    """Method → task → the settings that it was given there."""
    return {choice.method: {task: choice.of(task) for task in tasks} for choice in choices}


#: A run that tried settings out, and its record; None where its loss became infinite.
Trial = tuple[Run, RunRecord | None]


def choose(method: Method, tried: Sequence[tuple[Settings, Sequence[Trial]]], tasks: Sequence[str]) -> Choice:
    """Choose the settings of a method.

    Args:
        method: The method.
        tried: The combinations, each with its runs: one for each seed and each of its adapters.
        tasks: Names of the tasks.

    Raises:
        UserError: No combination could be trained.
    """
    scores = [Score(settings, {task: _mean(trials, task) for task in tasks}) for settings, trials in tried]
    chosen: dict[str, Settings] = {}
    for part in method.adapters_of(tasks):
        best = _best(method.name, part, scores, whole=len(part) == len(tasks))
        chosen |= dict.fromkeys([AVERAGE] if len(part) == len(tasks) else part, best.settings)
    return Choice(method.name, scores, chosen)


def _mean(trials: Sequence[Trial], task: str) -> float | None:
    """Mean of the task's metric over the runs that trained it; None where one of them has none."""
    found = [None if record is None else record.metrics[task] for run, record in trials if task in run.tasks]
    values = [value for value in found if value is not None and math.isfinite(value)]
    return float(np.mean(values)) if len(values) == len(found) else None


def _best(method: str, tasks: Sequence[str], scores: Sequence[Score], whole: bool) -> Score:
    """The best settings of the adapter that serves these tasks."""

    def points(score: Score) -> float:
        value = score.over(tasks)
        return -math.inf if value is None else value

    best = max(scores, key=points)  # of equal ones the first
    if points(best) == -math.inf:
        raise UserError(
            f"study.sweep: no settings work for {method}" + ("" if whole else f" on {listing(tasks)}"),
            expected="a finite loss and metric with one of the values at least",
            found="; ".join(shown(score.settings) for score in scores) + ": none",
            todo="add lower learning rates to `study.sweep.values`, and start the same command again",
        )
    return best
