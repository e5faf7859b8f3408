"""A language model with one LoRA adapter that learns the answers of several tasks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ortholora.errors import TemplateError
from ortholora.models.adapted import AdaptedModel, Reading
from ortholora.models.answering import Answering, as_questions
from ortholora.models.answers import Answers, Prediction, most_likely
from ortholora.models.backbone import check_is_language_model, load_language_model
from ortholora.models.card import ModelCard
from ortholora.models.collators import Collator, LanguageCollator
from ortholora.models.language_spec import LanguageSpec
from ortholora.models.packed import PackingMode, attention_arguments, is_packed
from ortholora.models.probes import check_language_model, find_packing_mode
from ortholora.text.prompts import IGNORED

if TYPE_CHECKING:
    from ortholora.data.encoded import EncodedSplit


class LanguageModel(AdaptedModel):
    """A PEFT causal language model shared by all tasks. It has no heads: tasks differ in their prompts.

    Args:
        decoder: The PEFT model on a causal language model.
        specs: The T tasks, in the order of the task ids.
    """

    task_type = "CAUSAL_LM"
    collator: ClassVar[type[Collator]] = LanguageCollator
    window = 128  # an answer may take a second

    def __init__(self, decoder: PeftModel, specs: Sequence[LanguageSpec]) -> None:
        super().__init__()
        self.decoder = decoder
        self.specs: list[LanguageSpec] = list(specs)
        self._packing_mode: PackingMode | None = None
        base: Any = decoder.get_base_model()
        parameters = inspect.signature(base.forward).parameters
        # With LoRA on the output layer its inputs must be those of all tokens, to be split by task.
        head_is_adapted = isinstance(base.get_output_embeddings(), LoraLayer)
        self._keeps_logits = "logits_to_keep" in parameters and not head_is_adapted
        self._takes_positions = "position_ids" in parameters

    @staticmethod
    def check_backbone(backbone: str, revision: str | None) -> None:
        """Refuse what is no language model."""
        check_is_language_model(backbone, revision)

    @staticmethod
    def load_backbone(backbone: str, dtype: torch.dtype, revision: str | None) -> nn.Module:
        """Load the causal language model."""
        return load_language_model(backbone, dtype, revision)

    @classmethod
    def from_card(cls, peft_model: PeftModel, card: ModelCard, dropout: float, seed: int) -> Self:
        """The language model as it is: there are no heads to drop out or to draw."""
        return cls(peft_model, card.tasks)  # type: ignore[arg-type]

    @property
    def peft_model(self) -> PeftModel:
        """The language model with the adapter."""
        return self.decoder

    @property
    def backbone(self) -> nn.Module:
        """The language model without its output layer."""
        base: Any = self.decoder.get_base_model()
        return base.base_model

    def try_out(self) -> None:
        """It must read from left to right, and not mind padding on the left."""
        check_language_model(self, self.logits)

    def longest_rows(self, max_length: int) -> list[tuple[int, str]]:
        """Rows of `max_length`, and prompts with the answers that are generated to them."""
        return super().longest_rows(max_length) + [
            (spec.longest_row(max_length), f"`max_new_tokens: {spec.max_new_tokens}` of task {spec.name!r}")
            for spec in self.specs
            if spec.writes
        ]

    def forward(self, inputs: Mapping[str, Any], task_ids: Any = None) -> Tensor:
        """Run the model once over the mixed batch.

        Args:
            inputs: What `LanguageCollator` gave.
            task_ids: Not used: all tasks share the whole model.

        Returns:
            `[B]` float32: the negative log-likelihood of every row's target tokens, summed.
        """
        logits = self.logits(inputs).float()
        labels = inputs["labels"]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        if is_packed(inputs):
            return losses.new_zeros(len(inputs["lengths"])).index_add(0, inputs["rows"], losses)
        return losses.view(labels.shape).sum(1)

    def sum_losses(self, outputs: Tensor, batch: dict[str, Any]) -> Tensor:
        """The rows' losses, added up by task `[T]`."""
        ids = torch.as_tensor(batch["task_ids"]).to(outputs.device)
        return outputs.new_zeros(len(self.specs)).index_add(0, ids, outputs)

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits `[B, K, V]` at the columns that predict a target."""
        columns = inputs["columns"]
        arguments: dict[str, Any] = {"input_ids": inputs["input_ids"]}
        if is_packed(inputs):
            arguments |= attention_arguments(self.backbone, self.find_packing_mode(), inputs["lengths"], columns.device)
        else:
            arguments |= {"attention_mask": inputs["attention_mask"], "use_cache": False}
            if self._takes_positions:
                arguments["position_ids"] = inputs["position_ids"]
        if self._keeps_logits:
            return self.decoder(**arguments, logits_to_keep=columns).logits
        return self.decoder(**arguments).logits.index_select(1, columns)

    def find_packing_mode(self) -> PackingMode:
        """How this backbone keeps the rows of a packed batch apart; tried out once.

        Raises:
            UserError: It does not.
        """
        if self._packing_mode is None:
            self._packing_mode = find_packing_mode(self.backbone)
        return self._packing_mode

    def answer(self, task: int, rows: EncodedSplit, reading: Reading, *, write: bool) -> Answers:
        """The likeliest of a closed set of answers, the likelihood of the rows' own, and written ones if asked for."""
        spec, asking = self.specs[task], self.asking(reading)
        predictions, losses = None, None
        if spec.labels is not None:
            likelihoods = asking.choose(spec, rows.texts)
            predictions = likelihoods.argmax(1)
            if spec.learns_last_only:  # measured already
                own = np.asarray(rows.targets, dtype=np.int64)
                losses = -likelihoods[np.arange(len(rows)), own]
        if losses is None:
            losses = asking.losses([rows.row(i) for i in range(len(rows))])
        if not write:
            return Answers(predictions, losses)
        return Answers(predictions, losses, [row.answer for row in rows.texts], asking.write(spec, rows.texts))

    @torch.inference_mode()
    def predict(self, task: int, texts: Any, reading: Reading) -> list[Prediction]:
        """One prompt or message, one chat so far (a list of messages), or several of them."""
        spec, asking = self.specs[task], self.asking(reading)
        questions = as_questions(spec, texts)
        try:
            if spec.labels is None:
                return [Prediction(text=text) for text in asking.write(spec, questions)]
            return most_likely(torch.from_numpy(asking.choose(spec, questions)).softmax(-1), spec.labels)
        except TemplateError as error:
            if error.row is None:
                raise
            raise error.of(f"Text {error.row + 1}") from None

    def asking(self, reading: Reading) -> Answering:
        """Asks this model."""
        return Answering(self, reading.tokenizer, reading.max_length, reading.max_tokens)
