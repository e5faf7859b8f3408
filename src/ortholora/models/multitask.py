"""One encoder with one LoRA adapter, and a head for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel
from ortholora.models.heads import Head, HeadSpec, build_heads
from ortholora.models.packed import PackingMode, attention_arguments, is_packed, pool_packed
from ortholora.models.probes import find_packing_mode

Pooling = Literal["mean", "cls", "last"]


class MultiTaskModel(AdaptedModel):
    """A PEFT encoder shared by all tasks, with private heads.

    Args:
        encoder: The PEFT model on the bare backbone.
        specs: The T tasks' heads, in the order of the task ids.
        pooling: How token states `[B, S, H]` become vectors `[B, H]`.
        dropout: Dropout before each head.
        seed: Seed of the heads' initial weights.
    """

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
        self.heads = nn.ModuleList(build_heads(self.specs, encoder.config.hidden_size, dropout, seed))

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


def add_lora(
    encoder: nn.Module, options: Mapping[str, Any], seed: int, task_type: str = "FEATURE_EXTRACTION"
) -> PeftModel:
    """Put a LoRA adapter on the backbone.

    Args:
        encoder: The bare backbone.
        options: Arguments of `peft.LoraConfig`.
        seed: Seed of the initial A; drawn without touching the global generator.
        task_type: PEFT's name for what the backbone does, which decides the class of the PEFT model.

    Raises:
        UserError: The target modules match nothing, or an option does not exist.
    """
    options = {"task_type": task_type, **options}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(encoder, LoraConfig(**options))
    except (ValueError, TypeError, NotImplementedError) as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in encoder.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            "The LoRA adapter could not be put on the backbone",
            expected=f"`lora.target_modules` that name modules of {type(encoder).__name__}, such as "
            f"{', '.join(linear[:8])}, or all-linear; and options that peft.LoraConfig has",
            found=f"target_modules = {options.get('target_modules')!r}: {str(error).splitlines()[0]}",
            todo="correct `lora:` in the configuration",
        ) from error
    assert isinstance(model, PeftModel)
    return model
