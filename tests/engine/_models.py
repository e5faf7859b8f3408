"""Tiny random models with LoRA, and batches for them, built from a configuration in memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    Llama4TextConfig,
    Llama4TextModel,
    LlamaConfig,
    LlamaModel,
)

VOCAB = 19


@dataclass
class Sample:
    """A PEFT model with one batch for it.

    Attributes:
        model: The model; `peft(...)` gives every matrix, B included, random values.
        inputs: Keyword arguments of its forward.
        target: What its output is compared with, `[B, S, h]`.
    """

    model: nn.Module
    inputs: dict[str, Tensor]
    target: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """`(B, S)`."""
        return self.target.shape[0], self.target.shape[1]

    def fork(self) -> nn.Module:
        """Return an independent copy of the model; take it before anything is attached."""
        return copy.deepcopy(self.model)

    def rows(self, index: Any) -> Sample:
        """Return the same model with some of the rows."""
        return Sample(self.model, {k: v[index] for k, v in self.inputs.items()}, self.target[index])


def token_losses(model: nn.Module, sample: Sample) -> Tensor:
    """Loss of every token `[B, S]`."""
    output = model(**sample.inputs)
    hidden = output if isinstance(output, Tensor) else output[0]
    return (0.5 * (hidden.float() - sample.target) ** 2).mean(-1)


def task_losses(losses: Tensor, ids: Tensor | int, tasks: int) -> list[Tensor]:
    """Each task's part of the loss of a batch; an absent task's is zero."""
    if isinstance(ids, int):
        ids = torch.full(losses.shape[:1], ids)
    of_token = ids if ids.dim() == losses.dim() else ids[:, None].expand_as(losses)
    of_token = of_token.to(losses.device)
    return [(losses * (of_token == t)).sum() / losses.numel() for t in range(tasks)]


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → trainable LoRA matrix, read off PEFT's parameter names (not off our own search)."""
    marks = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and any(mark in name for mark in marks) and not name.endswith(".bias")
    }


def peft(base: nn.Module, targets: list[str] | None, **config: Any) -> nn.Module:
    """Wrap in PEFT with every LoRA matrix drawn at random (B = 0 would hide every gradient of A)."""
    defaults: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": targets}
    model = get_peft_model(base, LoraConfig(**{**defaults, **config}))
    draw_lora(model)
    return model.train()


def bare(model: nn.Module) -> nn.Module:
    """The base without its adapter; PEFT 0.18 leaves its configuration behind and warns of it later."""
    base = model.unload()
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base


def draw_lora(model: nn.Module) -> None:
    """Give every LoRA matrix random values of a moderate size."""
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.normal_(std=0.3)


class Stack(nn.Module):
    """Linear layers on tokens, without anything that mixes rows or tokens."""

    def __init__(self, sizes: list[int], repeat: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.shared = nn.Linear(sizes[-1], sizes[-1]) if repeat else None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        if self.shared is not None:
            x = self.shared(torch.tanh(self.shared(x)))  # the same layer twice
        return x


def stack(rows: int, tokens: int, sizes: list[int], repeat: bool = False, **config: Any) -> Sample:
    base = Stack(sizes, repeat)
    targets = [f"layers.{i}" for i in range(len(sizes) - 1)] + (["shared"] if repeat else [])
    model = peft(base, targets, **config)
    return Sample(model, {"x": torch.randn(rows, tokens, sizes[0])}, torch.randn(rows, tokens, sizes[-1]))


def bert(rows: int, tokens: int, **config: Any) -> Sample:
    base = BertModel(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    model = peft(base, ["query", "value", "dense"], **config)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, tokens - 1] = 0  # some padding
    return Sample(model, {"input_ids": _words(rows, tokens), "attention_mask": mask}, _target(rows, tokens))


def llama(rows: int, tokens: int, **config: Any) -> Sample:
    base = LlamaModel(LlamaConfig(num_key_value_heads=1, **_decoder()))
    model = peft(base, ["q_proj", "v_proj", "down_proj"], **config)
    return Sample(model, {"input_ids": _words(rows, tokens)}, _target(rows, tokens))


def packed_llama(lengths: list[int]) -> tuple[Sample, Tensor]:
    """Several documents in one row `[1, S]`, attention inside a document only; and each token's document."""
    tokens = sum(lengths)
    sample = llama(1, tokens)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = (document[:, None] == document[None, :]) & torch.ones(tokens, tokens).tril().bool()
    mask = torch.zeros(tokens, tokens).masked_fill(~allowed, torch.finfo(torch.float32).min)
    sample.inputs["attention_mask"] = mask[None, None]
    sample.inputs["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    return sample, document


def gpt2(rows: int, tokens: int, **config: Any) -> Sample:
    """Build a base of transposed `Conv1D` layers."""
    base = GPT2Model(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=8,
            n_layer=1,
            n_head=2,
            n_positions=16,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    model = peft(base, ["c_attn", "c_proj"], fan_in_fan_out=True, **config)
    return Sample(model, {"input_ids": _words(rows, tokens)}, _target(rows, tokens))


def experts(rows: int, tokens: int) -> Sample:
    """Build a mixture of experts whose experts are 3-D parameters (`target_parameters`) in every transformers."""
    sizes = {"intermediate_size_mlp": 12, "head_dim": 4, "pad_token_id": 0, "num_key_value_heads": 1}
    base = Llama4TextModel(Llama4TextConfig(num_local_experts=2, num_experts_per_tok=1, **sizes, **_decoder()))
    names = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
    model = peft(base, [], target_parameters=names)
    return Sample(model, {"input_ids": _words(rows, tokens)}, _target(rows, tokens))


def embedding(rows: int, tokens: int) -> Sample:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(VOCAB, 6), nn.Linear(6, 8)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.words(input_ids)))

    model = peft(Words(), ["words", "out"])
    return Sample(model, {"input_ids": _words(rows, tokens)}, _target(rows, tokens))


class Positions(nn.Module):
    """An MLP on positions `[S, d]`, added to every row `[B, S, 5]`."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.out = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])[:, None] + torch.arange(3.0)
        return self.out(torch.tanh(x + self.position(place.sin())))


def dora(rows: int, tokens: int) -> Sample:
    return stack(rows, tokens, [6, 8], use_dora=True)


def attention(rows: int, tokens: int) -> Sample:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x, x)[0]

    return Sample(peft(Attend(), ["attn"]), {"x": torch.randn(rows, tokens, 8)}, _target(rows, tokens))


def convolution(rows: int, tokens: int) -> Sample:
    class Convolve(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean(-1).transpose(1, 2)  # [B, S, 8]

    return Sample(peft(Convolve(), ["conv"]), {"x": torch.randn(rows, 3, tokens, 4)}, _target(rows, tokens))


#: Models of which a part cannot be split by row, by what they are.
TASK_PURE: dict[str, Callable[[int, int], Sample]] = {
    "embedding": embedding,
    "DoRA": dora,
    "target_parameters": experts,
    "MultiheadAttention": attention,
    "Conv2d": convolution,
}


def equal_runs(tasks: int, rows_per_task: int) -> Tensor:
    """`[0, 0, 1, 1, …]`."""
    return torch.arange(tasks).repeat_interleave(rows_per_task)


def _decoder() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 32,
        "use_cache": False,
    }


def _words(rows: int, tokens: int) -> Tensor:
    return torch.randint(3, VOCAB, (rows, tokens))


def _target(rows: int, tokens: int) -> Tensor:
    return torch.randn(rows, tokens, 8)
