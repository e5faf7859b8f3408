"""What a shared adapter's models have in common, whatever answers the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from peft import PeftModel
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while: without dropout, which would draw from the run's generator."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class TaskSpec(Protocol):
    """What is known of a task without its data; saved with the adapter."""

    @property
    def name(self) -> str:
        """The task."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names, or the closed set of answers."""
        ...

    @property
    def num_texts(self) -> int:
        """Texts that a question of the task consists of."""
        ...

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        ...


class AdaptedModel(nn.Module):
    """A PEFT model that is shared by all tasks."""

    specs: Any  # a list of `TaskSpec`

    @property
    def peft_model(self) -> PeftModel:
        """The backbone with the adapter."""
        raise NotImplementedError

    @property
    def backbone(self) -> nn.Module:
        """The part that turns tokens into states, inside of the PEFT model."""
        raise NotImplementedError

    @property
    def task_names(self) -> list[str]:
        """The tasks, in the order of the task ids."""
        return [spec.name for spec in self.specs]

    def sum_losses(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Add up the losses of every task's rows.

        Args:
            outputs: What `forward` gave.
            batch: The batch it was given.

        Returns:
            `[T]` float32, zero for tasks without rows in the batch.
        """
        raise NotImplementedError

    def find_packing_mode(self) -> Any:
        """Find out how the backbone keeps the rows of a packed batch apart.

        Raises:
            UserError: It does not.
        """
        raise NotImplementedError

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations in the backward; called by the Trainer (`gradient_checkpointing` before v5)."""
        self.peft_model.enable_input_require_grads()
        _either(self.peft_model, "activation_checkpointing_enable", "gradient_checkpointing_enable")(**kwargs)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations again."""
        _either(self.peft_model, "activation_checkpointing_disable", "gradient_checkpointing_disable")()

    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable


def _either(model: nn.Module, name: str, older: str) -> Any:
    """A method that transformers renamed."""
    return getattr(model, name, None) or getattr(model, older)
