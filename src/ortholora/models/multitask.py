"""The shared encoder: backbone, PEFT's LoRA adapter, and a head for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from peft import PeftModel
from torch import Tensor, nn

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel, Reading
from ortholora.models.answers import Answers, Prediction
from ortholora.models.backbone import load_encoder
from ortholora.models.batches import by_rows, by_tokens
from ortholora.models.card import ModelCard, Pooling
from ortholora.models.heads import Head, HeadSpec, build_heads
from ortholora.models.packed import PackingMode, attention_arguments, is_packed, pool_packed
from ortholora.models.probes import find_packing_mode
from ortholora.text.tokenise import encode
from ortholora.text.utf8 import is_text

if TYPE_CHECKING:
    from ortholora.data.encoded import EncodedSplit


class MultiTaskModel(AdaptedModel):
    """A PEFT encoder shared by all tasks, with private heads.

    Args:
        encoder: The PEFT model on the bare backbone.
        specs: The T tasks' heads, in the order of the task ids.
        pooling: How token states `[B, S, H]` become vectors `[B, H]`.
        dropout: Dropout before each head.
        seed: Seed of the heads' initial weights.
    """

    task_type = "FEATURE_EXTRACTION"

    def __init__(
        self,
        encoder: PeftModel,
        specs: Sequence[HeadSpec],
        pooling: Pooling = "mean",
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.specs: list[HeadSpec] = list(specs)
        self.pooling: Pooling = pooling
        self._packing_mode: PackingMode | None = None
        self.heads: nn.ModuleList = nn.ModuleList(build_heads(self.specs, encoder.config.hidden_size, dropout, seed))

    @staticmethod
    def load_backbone(backbone: str, dtype: torch.dtype, revision: str | None) -> nn.Module:
        """Load the encoder."""
        return load_encoder(backbone, dtype, revision)

    @classmethod
    def from_card(cls, peft_model: PeftModel, card: ModelCard, dropout: float, seed: int) -> Self:
        """An encoder with a head for each task."""
        return cls(peft_model, card.tasks, card.pooling, dropout, seed)  # type: ignore[arg-type]

    @property
    def peft_model(self) -> PeftModel:
        """The encoder with the adapter."""
        return self.encoder

    @property
    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.encoder

    def head(self, task: int) -> Head:
        """The head of a task id."""
        head = self.heads[task]
        assert isinstance(head, Head)
        return head

    def extra_weights(self) -> dict[str, Tensor]:
        """The heads' weights and biases, by task."""
        heads = [(spec.name, self.head(i).linear) for i, spec in enumerate(self.specs)]
        return {f"{name}.{key}": weight for name, linear in heads for key, weight in linear.named_parameters()}

    def forward(self, inputs: Mapping[str, Any], task_ids: Sequence[int] | Tensor) -> dict[int, Tensor]:
        """Run the encoder once over the mixed batch, and every task's head on its own rows.

        Args:
            inputs: What the tokenizer gave (`input_ids [B, S]`, `attention_mask`, …); or one packed row
                (`input_ids [1, S]`, …) with the `lengths` of its B texts.
            task_ids: B ints; a list rather than a tensor, which DDP would move to the device.

        Returns:
            Task id → outputs `[rows of the task, num_outputs]`, rows in batch order.
        """
        pooled = self.encode(inputs)
        ids = torch.as_tensor(task_ids)
        outputs = {}
        for task in ids.unique().tolist():
            rows = (ids == task).nonzero().squeeze(1).to(pooled.device)
            outputs[task] = self.head(task)(pooled.index_select(0, rows))
        return outputs

    def encode(self, inputs: Mapping[str, Any]) -> Tensor:
        """Pooled vectors `[B, H]`, in the heads' precision."""
        if is_packed(inputs):
            pooled = self._encode_packed(dict(inputs))
        else:
            states = self.encoder(**inputs).last_hidden_state
            pooled = pool(states, inputs["attention_mask"], self.pooling)
        return pooled.to(self.head(0).linear.weight.dtype)

    def _encode_packed(self, inputs: dict[str, Any]) -> Tensor:
        lengths = inputs.pop("lengths")
        extra = attention_arguments(self.encoder, self.find_packing_mode(), lengths, inputs["input_ids"].device)
        return pool_packed(self.encoder(**inputs, **extra).last_hidden_state[0], lengths, self.pooling)

    def find_packing_mode(self) -> PackingMode:
        """How this backbone keeps the texts of a packed row apart; tried out once.

        Raises:
            UserError: It does not.
        """
        if self._packing_mode is None:
            self._packing_mode = find_packing_mode(self.encoder)
        return self._packing_mode

    def sum_losses(self, outputs: dict[int, Tensor], batch: dict[str, Any]) -> Tensor:
        """The losses of every task's rows, added up, `[T]`."""
        targets = batch["targets"]
        ids = torch.tensor(batch["task_ids"])
        losses = torch.zeros(len(self.specs), device=targets.device)
        for task, out in outputs.items():
            rows = (ids == task).nonzero().squeeze(1).to(targets.device)
            total = self.specs[task].row_losses(out, targets.index_select(0, rows)).sum()
            losses = losses.index_add(0, torch.tensor([task], device=targets.device), total[None])
        return losses

    def answer(self, task: int, rows: EncodedSplit, reading: Reading, *, write: bool) -> Answers:
        """The head's classes (int64) or values, `[rows]`."""
        return Answers(self.specs[task].predictions(self._outputs(task, rows.features, reading)).numpy())

    @torch.inference_mode()
    def predict(self, task: int, texts: Any, reading: Reading) -> list[Prediction]:
        """One text or several; a pair is a tuple (or list) of two strings."""
        spec = self.specs[task]
        given = [texts] if isinstance(texts, str) else texts
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in given]
        _check_rows(rows, spec.num_texts)
        return spec.answers(self._outputs(task, encode(reading.tokenizer, rows, reading.max_length), reading))

    def _outputs(self, task: int, features: Mapping[str, Sequence[list[int]]], reading: Reading) -> Tensor:
        """What a task's head gives for some rows, in their own order, `[rows, num_outputs]` on the host.

        Rows of like length run together, longest first, so that little is padding.
        """
        lengths = [len(ids) for ids in features["input_ids"]]
        outputs = torch.zeros(len(lengths), self.specs[task].num_outputs)
        device = next(self.parameters()).device
        collator = self.collator(reading.tokenizer, reading.multiple)
        size = reading.batch_size
        for own in by_tokens(lengths, reading.max_tokens) if size is None else by_rows(lengths, size):
            batch = collator.pad([{key: values[i] for key, values in features.items()} for i in own])
            inputs = {key: value.to(device) for key, value in batch.items()}
            outputs[own] = self(inputs, [task] * len(own))[task].float().cpu()
        return outputs


def _check_rows(rows: Sequence[tuple[str, ...]], num_texts: int) -> None:
    for i, row in enumerate(rows):
        if len(row) != num_texts or any(not part.strip() or not is_text(part) for part in row):
            raise UserError(
                f"Text {i + 1} cannot be predicted",
                expected="a text that is not empty" if num_texts == 1 else "a pair of two texts, neither empty",
                found=repr(row if len(row) != 1 else row[0]),
                todo="remove or complete it",
            )


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool token states `[B, S, H]` with attention mask `[B, S]` to float32 vectors `[B, H]`."""
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        # The last real token, whether padding is on the left or on the right.
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * (positions + 1)).argmax(1)
        return states[torch.arange(len(states), device=states.device), last].float()
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)
