"""What makes a `transformers.Trainer` an Ortho-LoRA trainer: resolve on the last micro-batch, log, and resume."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora, StepStats
from ortholora.trainers.conflicts import ConflictTracker
from ortholora.trainers.pace import Pace
from ortholora.trainers.resume import read_state, write_state
from ortholora.trainers.task_losses import TaskLosses


class ResolveMixin:
    """Put before a Trainer class: `class MyTrainer(ResolveMixin, Trainer)`, and set `self.ortho`.

    Batches must carry `task_ids` (a list of ints or a CPU tensor; see `OrthoLora.batch`). `training_step`
    is the place: callbacks before the optimizer run after clipping, which would clip the wrong gradient.
    Logs get `conflict/...` and `size/<task>`. Checkpoints carry the state of all this, so that a resumed run is the
    uninterrupted one.

    Attributes:
        ortho: Resolves conflicts. None: plain training.
        task_losses: Set it too, and add each task's losses in `compute_loss`, before any task weight: logs then get
            `loss/<task>` and `pace/<task>`, and rules that look at losses get them.
    """

    ortho: OrthoLora | None = None
    task_losses: TaskLosses | None = None

    @cached_property
    def conflicts(self) -> ConflictTracker:
        """How the tasks of `self.ortho` conflicted; empty without it."""
        return ConflictTracker([] if self.ortho is None else list(self.ortho.tasks))

    @cached_property
    def pace(self) -> Pace:
        """How far each task has come; without `task_losses` nothing is known of it."""
        return Pace()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Capture every micro-batch of these inputs; on the last one of the step, resolve.

        Returns:
            The sum of the micro-batches' losses, detached.
        """
        parts = self.micro_batches_of(inputs)
        losses = []
        for position, part in enumerate(parts, start=1):
            # DDP reduces in the last backward only.
            with nullcontext() if position == len(parts) else self.accelerator.no_sync(model):  # type: ignore[attr-defined]
                losses.append(self._captured(model, part, num_items_in_batch))
        if self.ortho is not None and self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            stats = self.ortho.resolve(losses=None if self.task_losses is None else self.task_losses.take_step())
            self.conflicts.add(stats)
            self.on_resolved(stats)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _captured(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        halves = self.halves_of(inputs)
        with nullcontext() if self.ortho is None else self.ortho.batch(self.task_ids_of(inputs), halves):
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.forget_unfinished_step()
        return super()._inner_training_loop(*args, **kwargs)  # type: ignore[misc]

    def forget_unfinished_step(self) -> None:
        """Drop what an interrupted step left; the Trainer itself clears `.grad` when it starts (again).

        Called whenever training starts: after Ctrl-C in a notebook, or anew after it ran out of memory.
        """
        if self.ortho is not None:
            self.ortho.discard()
        if self.task_losses is not None:
            self.task_losses.forget_own()

    def micro_batches_of(self, inputs: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """The micro-batches that one loader batch consists of: itself, unless the loader plans whole steps."""
        return [inputs]

    def task_ids_of(self, inputs: dict[str, Any]) -> Any:
        """The task ids of a batch; removed from it, because model forwards do not know them."""
        return inputs.pop("task_ids")

    def halves_of(self, inputs: dict[str, Any]) -> Any:
        """The halves of a batch, for rules that compare two halves of a step; None: dealt out in turn."""
        return None

    def on_resolved(self, stats: StepStats) -> None:
        """Called with what happened in each step."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to the logs of training: losses, pace, conflicts and sizes (`ConflictTracker.take_recent`)."""
        if "loss" in logs:
            if self.task_losses is not None:
                losses = self.task_losses.take()
                logs |= {f"loss/{name}": mean for name, mean in losses.items()}
                logs |= {f"pace/{name}": pace for name, pace in self.pace.of(losses).items()}
            if self.ortho is not None:
                logs |= self.conflicts.take_recent()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def resume_state(self) -> dict[str, Any]:
        """What a checkpoint keeps; extend it together with `load_resume_state`. Every rank calls it, one writes."""
        return {
            "ortho": None if self.ortho is None else self.ortho.state_dict(),
            "conflicts": None if self.ortho is None else self.conflicts.state_dict(),
            "task_losses": None if self.task_losses is None else self.task_losses.state_dict(),
            "pace": self.pace.first,
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore `resume_state()`."""
        if self.ortho is not None:
            if state["ortho"] is None:
                _warn_of_new_start("was saved by a training without a rule")
            else:
                self.ortho.load_state_dict(state["ortho"])
                if state.get("conflicts") is not None:  # not every trainer kept them always
                    self.conflicts.load_state_dict(state["conflicts"])
        if self.task_losses is not None and state.get("task_losses") is not None:
            self.task_losses.load_state_dict(state["task_losses"])
        self.pace.first = dict(state.get("pace") or {})

    def _save_rng_state(self, output_dir: str) -> None:
        # Part of every checkpoint that can be resumed, and before trainer_state.json, which makes it complete.
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        state = self.resume_state()
        if self.args.should_save:  # type: ignore[attr-defined]
            write_state(Path(output_dir), state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        self.restore(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Restore what a checkpoint keeps beside weights, optimizer and the Trainer's own state.

        Raises:
            UserError: The file is cut off or of another kind.
        """
        state = read_state(checkpoint)
        if state is not None:
            self.load_resume_state(state)
        elif self.ortho is not None:
            _warn_of_new_start("was not saved by an Ortho-LoRA trainer")


def _warn_of_new_start(why: str) -> None:
    warnings.warn(f"The checkpoint {why}: visit orders and the rule's memory start anew", stacklevel=4)
