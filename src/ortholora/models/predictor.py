"""`ortholora.load(folder)`: a trained adapter that answers for every task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ortholora.models.adapted import AdaptedModel, Reading
from ortholora.models.answers import Prediction
from ortholora.models.backbone import load_tokenizer
from ortholora.models.card import ModelCard
from ortholora.models.loading import load_model

Text = str | Sequence[str]


class Predictor:
    """A trained model with its tokenizer.

    Attributes:
        model: The `MultiTaskModel` or `LanguageModel`; `model.peft_model` is the PEFT model.
        card: Tasks, labels and backbone.
        tokenizer: The backbone's tokenizer.
        max_tokens: Most padded tokens of a forward that is not cut by rows; lower it where memory is short.
    """

    model: AdaptedModel
    card: ModelCard
    tokenizer: Any

    def __init__(self, model: AdaptedModel, card: ModelCard, tokenizer: Any) -> None:
        self.model, self.card, self.tokenizer = model, card, tokenizer
        self.max_tokens: int = 8192

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return self.model.task_names

    def predict(self, task: str, texts: Text | Sequence[Text], batch_size: int | None = 32) -> list[Prediction]:
        """Answer one task for some texts.

        Args:
            task: Name of the task.
            texts: One text, or several; a pair is a tuple (or list) of two strings inside the list. For a chat task
                a text is the user's message, or the messages so far as a list of `role` and `content`.
            batch_size: Rows per forward of an encoder; with None, and for a language model, `max_tokens` decides.

        Returns:
            One `Prediction` a text, in order.

        Raises:
            UserError: Unknown task, an empty text, or a pair where one text is wanted.
        """
        index = self.card.index_of(task)
        with self.precision():
            return self.model.predict(index, texts, self.reading(batch_size))

    def reading(self, batch_size: int | None = 32) -> Reading:
        """How texts come into a forward."""
        return Reading(self.tokenizer, self.card.max_length, self.max_tokens, batch_size)

    def precision(self) -> torch.autocast:
        """As in training: a bfloat16 backbone multiplies in bfloat16, the adapter's float32 weights included."""
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.card.dtype == "bfloat16")


def load(folder: str | Path, device: str | torch.device | None = None) -> Predictor:
    """Load a run of `ortholora train` (or one run of `compare`).

    Args:
        folder: The run's folder.
        device: Where to put the model; default: CUDA if there is one, else the CPU.

    Raises:
        UserError: The folder is no run, damaged, or its backbone cannot be had.
    """
    model, card = load_model(Path(folder))
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(model.to(target), card, load_tokenizer(card.backbone, card.revision))
