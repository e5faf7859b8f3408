"""`ortholora.load(folder)`: a trained adapter that answers for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel
from ortholora.models.answering import Answering
from ortholora.models.backbone import load_tokenizer
from ortholora.models.language import LanguageModel, LanguageSpec
from ortholora.models.multitask import MultiTaskModel
from ortholora.models.saving import ModelCard, load_model
from ortholora.text.prompts import ask
from ortholora.text.tokenise import encode

Text = str | Sequence[str]


@dataclass(frozen=True)
class Prediction:
    """An answer for one text.

    Attributes:
        label: Predicted class (classification), or the likeliest of a closed set of answers (language model).
        scores: Class → probability; among the answers of the set, for a language model.
        value: Predicted value (regression).
        text: Generated answer (language model with open answers).
    """

    label: str | None = None
    scores: dict[str, float] | None = None
    value: float | None = None
    text: str | None = None


class Predictor:
    """A trained model with its tokenizer.

    Attributes:
        model: The `MultiTaskModel` or `LanguageModel`; `model.peft_model` is the PEFT model.
        card: Tasks, labels and backbone.
        tokenizer: The backbone's tokenizer.
        max_tokens: Most padded tokens of a forward of a language model; lower it where memory is short.
    """

    def __init__(self, model: AdaptedModel, card: ModelCard, tokenizer: Any) -> None:
        self.model, self.card, self.tokenizer = model, card, tokenizer
        self.max_tokens = 8192

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return self.model.task_names

    @torch.inference_mode()
    def predict(self, task: str, texts: Text | Sequence[Text], batch_size: int = 32) -> list[Prediction]:
        """Answer one task for some texts.

        Args:
            task: Name of the task.
            texts: One text, or several; a pair is a tuple (or list) of two strings inside the list. For a chat task
                a text is the user's message, or the messages so far as a list of `role` and `content`.
            batch_size: Rows per forward; a language model goes by `max_tokens` instead.

        Returns:
            One `Prediction` a text, in order.

        Raises:
            UserError: Unknown task, an empty text, or a pair where one text is wanted.
        """
        index = self.card.index_of(task)
        if isinstance(self.model, LanguageModel):
            one = isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], Mapping))
            return self._answer(self.model.specs[index], [texts] if one else list(texts))
        assert isinstance(self.model, MultiTaskModel)
        rows = [_as_row(text) for text in ([texts] if isinstance(texts, str) else texts)]
        spec = self.model.specs[index]
        _check_rows(rows, spec.num_texts)
        answers: list[Prediction] = []
        for start in range(0, len(rows), batch_size):
            outputs = self._outputs(index, rows[start : start + batch_size])
            if spec.kind == "regression":
                answers += [Prediction(value=v) for v in spec.predictions(outputs).tolist()]
            else:
                assert spec.labels is not None
                answers += [_classified(p, spec.labels) for p in outputs.float().softmax(-1)]
        return answers

    def _answer(self, spec: LanguageSpec, texts: list[Any]) -> list[Prediction]:
        texts = [text[0] if isinstance(text, tuple) and len(text) == 1 else text for text in texts]
        for i, text in enumerate(texts):
            _check_question(i, text, spec.kind)
        rows = [ask(spec.kind, text) for text in texts]
        with self.precision():
            if spec.labels is None:
                return [Prediction(text=text) for text in self.asking.write(spec, rows)]
            scores = torch.from_numpy(self.asking.choose(spec, rows))
        return [_classified(p, spec.labels) for p in scores.softmax(-1)]

    @property
    def asking(self) -> Answering:
        """Asks the language model."""
        assert isinstance(self.model, LanguageModel)
        return Answering(self.model, self.tokenizer, self.card.max_length, self.max_tokens)

    def precision(self) -> torch.autocast:
        """As in training: a bfloat16 backbone multiplies in bfloat16, the adapter's float32 weights included."""
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.card.dtype == "bfloat16")

    def _outputs(self, task: int, rows: list[tuple[str, ...]]) -> Tensor:
        inputs = encode(self.tokenizer, rows, self.card.max_length)
        batch = self.tokenizer.pad(inputs, return_tensors="pt")
        device = next(self.model.parameters()).device
        ids = torch.full((len(rows),), task)
        with self.precision():
            return self.model({k: v.to(device) for k, v in batch.items()}, ids)[task]


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


def _as_row(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _check_rows(rows: list[tuple[str, ...]], num_texts: int) -> None:
    for i, row in enumerate(rows):
        if len(row) != num_texts or any(not part.strip() for part in row):
            raise UserError(
                f"Text {i + 1} cannot be predicted",
                expected="a text that is not empty" if num_texts == 1 else "a pair of two texts, neither empty",
                found=repr(row if len(row) != 1 else row[0]),
                todo="remove or complete it",
            )


def _check_question(number: int, text: Any, kind: str) -> None:
    is_text = isinstance(text, str) and bool(text.strip())
    is_chat = isinstance(text, list) and bool(text) and all(isinstance(m, dict) and "content" in m for m in text)
    # An answer to the assistant's own message was never trained.
    is_open = is_text or (is_chat and kind == "chat" and text[-1].get("role") != "assistant")
    if not is_open:
        chat = ", or a list of messages with `role` and `content`, the last not from the assistant"
        raise UserError(
            f"Text {number + 1} cannot be answered",
            expected="a text that is not empty" + (chat if kind == "chat" else ""),
            found=repr(text)[:200],
            todo="remove or correct it",
        )


def _classified(probabilities: Tensor, labels: Sequence[str]) -> Prediction:
    scores = dict(zip(labels, probabilities.tolist(), strict=True))
    return Prediction(label=labels[int(probabilities.argmax())], scores=scores)
