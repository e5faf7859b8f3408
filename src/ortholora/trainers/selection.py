"""What the best checkpoint is, and when a task has learned all it will: both judged by the tasks' metrics on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ortholora.errors import UserError

#: Key of the score in logs, behind `eval_`. No task and no metric can be called so.
SCORE = "selection/score"


@dataclass(frozen=True)
class Selection:
    """One number for an evaluation, the larger the better.

    Attributes:
        by: `mean` over the tasks, or `worst`: the least of their metrics.
        weights: Task → its weight in the mean; 1 for a task that is not named.
    """

    by: Literal["mean", "worst"] = "mean"
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether it is the mean that is logged as `average` anyway."""
        return self.by == "mean" and not self.weights

    def score(self, metrics: Mapping[str, float]) -> float:
        """The score of the tasks' metrics. Where all of the tasks have the weight 0, their plain mean."""
        if self.by == "worst":
            return min(metrics.values())
        weights = [self.weights.get(task, 1.0) for task in metrics]
        if not any(weights):
            weights = [1.0] * len(weights)
        return sum(w * value for w, value in zip(weights, metrics.values(), strict=True)) / sum(weights)


class TaskPatience(TrainerCallback):
    """Lets a task go once its metric has not got better for some evaluations: its rows leave the steps from then on.

    The others keep the rows that they would have had. When no task is left, training stops.

    Args:
        tasks: Names of the T tasks.
        patience: Evaluations in a row without a better metric, after which a task goes.
    """

    def __init__(self, tasks: Sequence[str], patience: int) -> None:
        self.tasks: list[str] = list(tasks)
        self.patience = patience
        #: Index of a task → number of the first step (from 0) without it. The sampler looks here.
        self.gone: dict[int, int] = {}
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}
        self._training = False

    @property
    def stopped(self) -> dict[str, int]:
        """Task → the step (from 1) after which its rows left."""
        return {self.tasks[task]: step for task, step in self.gone.items()}

    def look(self, metrics: Mapping[str, float], step: int) -> list[str]:
        """Take note of an evaluation.

        Args:
            metrics: Task → its metric on dev.
            step: Steps that are done.

        Returns:
            The tasks that go now.
        """
        leaving = []
        for index, task in enumerate(self.tasks):
            if index in self.gone:
                continue
            if task not in self._best or metrics[task] > self._best[task]:
                self._best[task], self._waited[task] = metrics[task], 0
                continue
            self._waited[task] = self._waited.get(task, 0) + 1
            if self._waited[task] >= self.patience:
                self.gone[index] = step
                leaving.append(task)
        return leaving

    @property
    def all_gone(self) -> bool:
        """Whether there is nothing left to train."""
        return len(self.gone) == len(self.tasks)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From now on evaluations count."""
        self._training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What is evaluated after the training lets no task go."""
        self._training = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the metrics; keep in the log who goes."""
        found = kwargs["metrics"]
        if not self._training:
            return
        for task in self.look({task: found[f"eval_{task}"] for task in self.tasks}, state.global_step):
            state.log_history.append({"step": state.global_step, f"stopped/{task}": state.global_step})
        control.should_training_stop |= self.all_gone

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"tasks": self.tasks, "gone": dict(self.gone), "best": dict(self._best), "waited": dict(self._waited)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.gone.clear()  # the sampler holds this very mapping
        self.gone.update(state["gone"])
        self._best, self._waited = dict(state["best"]), dict(state["waited"])


def check_patience(args: TrainingArguments, quota: Sequence[int]) -> None:
    """Check that steps can lose a task.

    Raises:
        UserError: Batches are made ahead in other processes, or a step could have fewer rows than processes.
    """
    if args.dataloader_num_workers:
        raise UserError(
            "`patience_per_task` and workers of the loader do not go together",
            expected="`dataloader_num_workers: 0`: batches made ahead would still have rows of a task that has stopped",
            found=f"dataloader_num_workers: {args.dataloader_num_workers}",
            todo="remove one of the two",
        )
    if min(quota) < args.world_size:
        raise UserError(
            "A step could have fewer rows than there are processes",
            expected=f"at least {args.world_size} rows of each task in a step with `patience_per_task`: any "
            "may be the last",
            found=f"a task with {min(quota)}",
            todo="raise `mixing.rows_per_task`, or start fewer processes",
        )
