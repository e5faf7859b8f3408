"""Padding-free batches: a text's states and its pooled vector do not depend on what is packed beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging import version
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
)

from ortholora.errors import UserError
from ortholora.models.multitask import pool
from ortholora.models.packed import Way, _keeps_apart, attention_arguments, find_way, pool_packed

SIZES = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXTS = [[5, 9, 7, 3], [8, 4], [6, 11, 12, 13, 14, 2], [29]]
LENGTHS = [len(text) for text in TEXTS]
ENCODER_WAY: Way = "mask" if version.parse(transformers.__version__).major >= 5 else "square"


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
    way = find_way(encoder)
    assert encoder.training  # as it was
    encoder.eval()
    states, mask = padded(encoder)
    row = torch.tensor([[token for text in TEXTS for token in text]])
    arguments = attention_arguments(encoder, way, LENGTHS, row.device)
    packed = encoder(input_ids=row, **arguments).last_hidden_state[0]
    for found, expected, length in zip(packed.split(LENGTHS), states, LENGTHS, strict=True):
        torch.testing.assert_close(found, expected[:length], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool_packed(packed, LENGTHS, pooling), pool(states, mask, pooling), rtol=1e-4, atol=1e-5)


def test_the_probe_sees_texts_that_attend_to_each_other() -> None:
    encoder = bert("sdpa").eval()
    assert not _keeps_apart(encoder, "positions")
    assert _keeps_apart(encoder, ENCODER_WAY)
    decoder = llama("sdpa").eval()
    assert not _keeps_apart(decoder, "mask")  # a decoder does not look ahead
    assert _keeps_apart(decoder, "positions")


def test_in_half_precision_the_probe_still_tells_them_apart() -> None:
    for build, way in ((bert, ENCODER_WAY), (llama, "positions")):
        encoder = build("sdpa")
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(8)  # random weights hardly attend; trained ones do
        assert find_way(encoder.bfloat16()) == way


def test_a_backbone_that_mixes_texts_is_refused() -> None:
    """RoBERTa counts positions from another start, so that our positions give other states."""
    encoder = RobertaModel(RobertaConfig(**SIZES, pad_token_id=1), add_pooling_layer=False)
    with pytest.raises(UserError, match="RobertaModel cannot run padding-free batches"):
        find_way(encoder)
