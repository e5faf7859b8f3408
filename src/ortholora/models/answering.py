"""What a language model answers: the likelihood of given answers, or an answer of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel
from ortholora.models.batches import by_tokens
from ortholora.models.language_spec import LanguageSpec
from ortholora.text.dialogue import Dialogue
from ortholora.text.padding import Features, pad_left
from ortholora.text.prompts import Marked, each, ends, mark, prompt_ids


@dataclass(frozen=True)
class Answering:
    """Asks a language model.

    Attributes:
        model: The language model, in evaluation mode.
        tokenizer: Its tokenizer.
        max_length: Most tokens of a row.
        max_tokens: Most padded tokens of a forward.
    """

    model: AdaptedModel
    tokenizer: Any
    max_length: int
    max_tokens: int

    @torch.inference_mode()
    def losses(self, rows: Features) -> np.ndarray:
        """Negative log-likelihood of every row's target tokens, summed, `[rows]` float64."""
        result = np.zeros(len(rows))
        for chosen in by_tokens([len(row["input_ids"]) for row in rows], self.max_tokens):
            inputs = self._pad([rows[i] for i in chosen])
            result[chosen] = self.model(inputs).double().cpu().numpy()
        return result

    def choose(self, spec: LanguageSpec, rows: Sequence[Dialogue]) -> np.ndarray:
        """Log-likelihood of each of the task's answers, its end included, `[rows, answers]`.

        Every answer is followed by the token that ends it, so that none is ahead for being another's beginning.
        """
        labels = spec.labels
        assert labels is not None
        asked = [marked for all_of_row in each(rows, lambda row: self._with_each(row, labels)) for marked in all_of_row]
        return -self.losses([{"input_ids": row.ids, "labels": row.labels} for row in asked]).reshape(
            len(rows), len(labels)
        )

    @torch.inference_mode()
    def write(self, spec: LanguageSpec, rows: Sequence[Dialogue]) -> list[str]:
        """Answers, written greedily: the likeliest token each time, up to the end or `max_new_tokens`."""
        prompts = each(rows, lambda row: prompt_ids(self.tokenizer, row, self.max_length, spec.max_new_tokens))
        answers = [""] * len(rows)
        for chosen in by_tokens([len(ids) + spec.max_new_tokens for ids in prompts], self.max_tokens):
            inputs = self._pad([{"input_ids": prompts[i], "labels": prompts[i]} for i in chosen])
            given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
            tokens = self._generate(given, spec)
            written = tokens[:, given["input_ids"].shape[1] :]
            for i, text in zip(chosen, self.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                answers[i] = text
        return answers

    def _with_each(self, row: Dialogue, answers: Sequence[str]) -> list[Marked]:
        """The row with each of the answers; a long prompt is cut for the longest of them, so alike for all."""
        whole = [self._mark(row.with_answer(answer), sys.maxsize) for answer in answers]
        longest = max(len(marked.ids) for marked in whole)
        if longest <= self.max_length:
            return whole
        lengths = [self.max_length - longest + len(marked.ids) for marked in whole]
        pairs = zip(answers, lengths, strict=True)
        return [self._mark(row.with_answer(answer), max(length, 2)) for answer, length in pairs]

    def _mark(self, row: Dialogue, max_length: int) -> Marked:
        # The last turn is the answer, also of a task that learned from all turns.
        return mark(self.tokenizer, row, max_length, turns="last")

    def _generate(self, given: dict[str, Tensor], spec: LanguageSpec) -> Tensor:
        base: Any = self.model.peft_model.get_base_model()
        usual = base.generation_config
        stops = getattr(usual, "eos_token_id", None)
        stops = [stops] if isinstance(stops, int) else list(stops or [])
        # What a configuration leaves open, transformers takes from the model's: a repetition penalty, for one.
        base.generation_config = GenerationConfig()
        try:
            greedy = GenerationConfig(
                do_sample=False,
                max_new_tokens=spec.max_new_tokens,
                eos_token_id=sorted({*stops, *ends(self.tokenizer, spec.rows)}) or None,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            return self.model.peft_model.generate(**given, generation_config=greedy)
        finally:
            base.generation_config = usual

    def _pad(self, features: Features) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        return {key: value.to(device) for key, value in pad_left(features, self.tokenizer.pad_token_id).items()}


def as_questions(spec: LanguageSpec, texts: Any) -> list[Dialogue]:
    """Rows without an answer, from what a user asks: one question or several.

    Raises:
        UserError: One is empty, or a chat that ends with the assistant's own message.
    """
    one = isinstance(texts, str | Mapping) or (len(texts) > 0 and isinstance(texts[0], Mapping) and "role" in texts[0])
    questions = [
        text[0] if isinstance(text, tuple) and len(text) == 1 else text for text in ([texts] if one else texts)
    ]
    for i, question in enumerate(questions):
        if not spec.rows.can_ask(question):
            raise UserError(
                f"Text {i + 1} cannot be answered",
                expected=spec.rows.expects,
                found=repr(question)[:200],
                todo="remove or correct it",
            )
    return [spec.rows.asking(question) for question in questions]
