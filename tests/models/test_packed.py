"""Padding-free batches: a text's states and its pooled vector do not depend on what is packed beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
)

from ortholora.models.multitask import pool
from ortholora.models.packed import attention_arguments, pool_packed
from ortholora.models.probes import find_packing_mode

SIZES = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXTS = [[5, 9, 7, 3], [8, 4], [6, 11, 12, 13, 14, 2], [29]]
LENGTHS = [len(text) for text in TEXTS]


def bert(kernel: str) -> nn.Module:
    return BertModel(BertConfig(**SIZES, attn_implementation=kernel), add_pooling_layer=False)


def llama(kernel: str) -> nn.Module:
    return LlamaModel(LlamaConfig(**SIZES, use_cache=False, attn_implementation=kernel))


def gpt2(kernel: str) -> nn.Module:
    return GPT2Model(
        GPT2Config(vocab_size=31, n_embd=8, n_layer=2, n_head=2, use_cache=False, attn_implementation=kernel)
    )


BUILDS = {"bert": bert, "llama": llama, "gpt2": gpt2}


def padded(encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """States `[B, S, H]` and mask `[B, S]` of the ordinary batch."""
    longest = max(LENGTHS)
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in TEXTS])
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in LENGTHS])
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_packed_texts_are_those_of_a_padded_batch(build: Any, kernel: str, pooling: Any) -> None:
    encoder = build(kernel).train()
    mode = find_packing_mode(encoder)
    assert encoder.training  # as it was
    encoder.eval()
    states, mask = padded(encoder)
    row = torch.tensor([[token for text in TEXTS for token in text]])
    arguments = attention_arguments(encoder, mode, LENGTHS, row.device)
    packed = encoder(input_ids=row, **arguments).last_hidden_state[0]
    for found, expected, length in zip(packed.split(LENGTHS), states, LENGTHS, strict=True):
        torch.testing.assert_close(found, expected[:length], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool_packed(packed, LENGTHS, pooling), pool(states, mask, pooling), rtol=1e-4, atol=1e-5)
