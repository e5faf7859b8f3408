"""A language model with one LoRA adapter that learns the answers of several tasks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ortholora.models.adapted import AdaptedModel
from ortholora.models.packed import PackingMode, attention_arguments, is_packed
from ortholora.models.probes import find_packing_mode
from ortholora.text.prompts import IGNORED


@dataclass(frozen=True)
class LanguageSpec:
    """A task of a language model; saved with the adapter.

    Attributes:
        name: The task.
        kind: `"completion"` or `"chat"`.
        labels: The closed set of answers; None for open ones.
        metric: Name of the task's metric, for whoever loads the adapter.
        max_new_tokens: Longest answer to generate, in tokens.
        turns: Which of the assistant's messages were learned from.
    """

    name: str
    kind: Literal["completion", "chat"]
    labels: tuple[str, ...] | None = None
    metric: str | None = None
    max_new_tokens: int = 64
    turns: Literal["all", "last"] = "all"

    @property
    def num_texts(self) -> int:
        """A question is one text: a prompt, or a message."""
        return 1

    @property
    def writes(self) -> bool:
        """Whether answers are generated: in evaluation, or by `predict`."""
        return self.labels is None or self.metric in ("exact_match", "rouge_l")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LanguageSpec:
        """Inverse of `to_json`."""
        labels = data.get("labels")
        return cls(**{**data, "labels": None if labels is None else tuple(labels)})


class LanguageModel(AdaptedModel):
    """A PEFT causal language model shared by all tasks. It has no heads: tasks differ in their prompts.

    Args:
        decoder: The PEFT model on a causal language model.
        specs: The T tasks, in the order of the task ids.
    """

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

    @property
    def peft_model(self) -> PeftModel:
        """The language model with the adapter."""
        return self.decoder

    @property
    def backbone(self) -> nn.Module:
        """The language model without its output layer."""
        base: Any = self.decoder.get_base_model()
        return base.base_model

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
