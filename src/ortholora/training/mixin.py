"""What makes a `transformers.Trainer` an Ortho-LoRA trainer: resolve on the last micro-batch."""

from __future__ import annotations

from typing import Any

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
        """Capture this micro-batch; on the last one of the step, resolve."""
        if self.ortho is None:
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        with self.ortho.batch(self.task_ids_of(inputs)):
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            self.on_resolved(self.ortho.resolve())
        return loss

    def task_ids_of(self, inputs: dict[str, Any]) -> Any:
        """The task ids of a batch; removed from it, because model forwards do not know them."""
        return inputs.pop("task_ids")

    def on_resolved(self, stats: StepStats) -> None:
        """Called with what happened in each step."""
