"""What makes a `transformers.Trainer` an Ortho-LoRA trainer: resolve on the last micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora, StepStats


class ResolveMixin:
    """Put before a Trainer class: `class MyTrainer(ResolveMixin, Trainer)`, and set `self.ortho`.

    Batches must carry `task_ids` (a list of ints or a CPU tensor; see `OrthoLora.batch`). `training_step`
    is the place: callbacks before the optimizer run after clipping, which would clip the wrong gradient.
    Save `self.ortho.state_dict()` with your checkpoints, or a resumed run visits tasks in another order.
    """

    ortho: OrthoLora | None = None

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
            self.on_resolved(self.ortho.resolve())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _captured(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None) -> Tensor:
        with nullcontext() if self.ortho is None else self.ortho.batch(self.task_ids_of(inputs)):
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]

    def micro_batches_of(self, inputs: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """The micro-batches that one loader batch consists of: itself, unless the loader plans whole steps."""
        return [inputs]

    def task_ids_of(self, inputs: dict[str, Any]) -> Any:
        """The task ids of a batch; removed from it, because model forwards do not know them."""
        return inputs.pop("task_ids")

    def on_resolved(self, stats: StepStats) -> None:
        """Called with what happened in each step."""
