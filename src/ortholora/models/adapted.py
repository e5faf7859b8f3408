"""What the models around a shared adapter have in common, whatever answers the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from peft import PeftModel
from torch import Tensor, nn

from ortholora.models.answers import Answers, Prediction
from ortholora.models.card import ModelCard
from ortholora.models.collators import Collator

if TYPE_CHECKING:
    from ortholora.data.encoded import EncodedSplit


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while: without dropout, which would draw from the run's generator."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Reading:
    """How rows come into a forward that is no training.

    Attributes:
        tokenizer: The backbone's tokenizer.
        max_length: Most tokens of a row.
        max_tokens: Most padded tokens of a forward of a language model.
        batch_size: Rows of a forward of an encoder; None to go by `max_tokens`, too.
        multiple: Pad an encoder's rows to a multiple of this many tokens.
    """

    tokenizer: Any
    max_length: int
    max_tokens: int = 8192
    batch_size: int | None = 32
    multiple: int = 1


class AdaptedModel(nn.Module):
    """A PEFT model that is shared by all tasks.

    All that differs between an encoder with heads and a language model is asked of this class; which of its
    subclasses a task needs is said by the table in `models/kinds.py`.
    """

    #: The T tasks, in the order of the task ids.
    specs: Any  # a list of `TaskSpec`, of the kind that the model knows

    #: PEFT's name for what the backbone does, which decides the class of the PEFT model.
    task_type: ClassVar[str]
    #: Makes the model's batches.
    collator: ClassVar[type[Collator]] = Collator
    #: Rows of a file that are answered, and written, together; rows of like length among them share a forward.
    window: ClassVar[int] = 2048

    @staticmethod
    def check_backbone(backbone: str, revision: str | None) -> None:
        """Look at a backbone's configuration, before anything is made ready for it.

        Raises:
            UserError: It is of another kind, or cannot be found or read.
        """

    @staticmethod
    def load_backbone(backbone: str, dtype: torch.dtype, revision: str | None) -> nn.Module:
        """Load the frozen model that the adapter is put on.

        Raises:
            UserError: It cannot be found or read, or is of another kind.
        """
        raise NotImplementedError

    @classmethod
    def from_card(cls, peft_model: PeftModel, card: ModelCard, dropout: float, seed: int) -> Self:
        """Put what a card says around a PEFT model.

        Args:
            peft_model: The backbone with the adapter.
            card: Tasks and settings.
            dropout: Dropout before each head, where there are heads.
            seed: Seed of the initial weights of the heads.
        """
        raise NotImplementedError

    def evaluating(self) -> AbstractContextManager[None]:
        """Put the model into evaluation mode for a while."""
        return evaluating(self)

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

    def try_out(self) -> None:
        """Run a few tokens, where a backbone may turn out to be of the wrong kind.

        Raises:
            UserError: It is.
        """

    def longest_rows(self, max_length: int) -> list[tuple[int, str]]:
        """Tokens of the longest rows that the model may have to read, each with the settings that make it so long."""
        return [(max_length, f"`max_length: {max_length}`")]

    def extra_weights(self) -> dict[str, Tensor]:
        """Trained weights that are no part of the adapter, by the name under which they are saved."""
        return {}

    def sum_losses(self, outputs: Any, batch: dict[str, Any]) -> Tensor:
        """Add up the losses of every task's rows.

        Args:
            outputs: What `forward` gave.
            batch: The batch it was given.

        Returns:
            `[T]` float32, zero for tasks without rows in the batch.
        """
        raise NotImplementedError

    def answer(self, task: int, rows: EncodedSplit, reading: Reading, *, write: bool) -> Answers:
        """Answer rows whose answers are known. In evaluation mode and without gradients, which is the caller's affair.

        Args:
            task: Id of the task.
            rows: The rows.
            reading: How they come into a forward.
            write: Generate answers, too, where the model can.
        """
        raise NotImplementedError

    def predict(self, task: int, texts: Any, reading: Reading) -> list[Prediction]:
        """Answer a user's texts; see `Predictor.predict`.

        Raises:
            UserError: An empty text, or a pair where one text is wanted.
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
