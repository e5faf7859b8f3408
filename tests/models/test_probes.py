"""What is found out by trying: the positions that a model learned, and texts of a packed row that read each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from peft import LoraConfig
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
)

from ortholora.errors import UserError
from ortholora.models.adapter import add_lora
from ortholora.models.build import wrap
from ortholora.models.card import ModelCard
from ortholora.models.heads import HeadSpec
from ortholora.models.language_spec import LanguageSpec
from ortholora.models.packed import PackingMode
from ortholora.models.probes import check_positions, find_packing_mode, keeps_texts_apart, packed_rows_keep_texts_apart

SIZES = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
SIZES |= {"max_position_embeddings": 40}
ENCODER_MODE: PackingMode = "mask" if version.parse(transformers.__version__).major >= 5 else "square"


def bert() -> nn.Module:
    return BertModel(BertConfig(**SIZES), add_pooling_layer=False)


def roberta() -> nn.Module:
    return RobertaModel(RobertaConfig(**SIZES, pad_token_id=1), add_pooling_layer=False)


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=31, n_embd=8, n_layer=2, n_head=2, n_positions=40))


def llama() -> nn.Module:
    return LlamaModel(LlamaConfig(**SIZES))


def gpt2_writer() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=8, n_layer=2, n_head=2, n_positions=40, bos_token_id=1))


def wrapped(build: Any, max_length: int) -> nn.Module:
    card = ModelCard("none", None, "float32", "mean", max_length, (HeadSpec("t", "classification", ("a", "b")),))
    peft_model = add_lora(build(), LoraConfig(r=2, target_modules="all-linear").to_dict(), 0)
    return wrap(peft_model, card)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(("build", "longest"), [(bert, 40), (roberta, 38), (gpt2, 40)])
def test_learned_positions_end(build: Any, longest: int) -> None:
    torch.manual_seed(0)
    model = wrapped(build, longest)
    before = torch.get_rng_state()
    check_positions(model.train(), longest, "")
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UserError, match=f"max_length: {longest + 1}.*longer than what the backbone can read"):
        wrapped(build, longest + 1)


def test_rotary_positions_go_on() -> None:
    wrapped(llama, 10**9)  # not even tried


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_answers_need_positions_too() -> None:
    def written(**task: Any) -> nn.Module:
        card = ModelCard("none", None, "float32", "mean", 40, (LanguageSpec("t", "completion", **task),))
        options = LoraConfig(r=2, target_modules="all-linear").to_dict()
        return wrap(add_lora(gpt2_writer(), options, 0, "CAUSAL_LM"), card)

    written(max_new_tokens=20)  # a prompt is cut down to half of the row
    written(max_new_tokens=64, labels=(" no", " yes"))
    for task in ({}, {"labels": (" no", " yes"), "metric": "exact_match"}):
        with pytest.raises(UserError, match="max_new_tokens: 21` of task 't': rows of up to 41 tokens"):
            written(max_new_tokens=21, **task)


def test_the_probe_sees_texts_that_attend_to_each_other() -> None:
    encoder = bert().eval()
    assert not keeps_texts_apart(encoder, "positions")
    assert keeps_texts_apart(encoder, ENCODER_MODE)
    decoder = llama().eval()
    assert not keeps_texts_apart(decoder, "mask")  # a decoder does not look ahead
    assert keeps_texts_apart(decoder, "positions")


def test_in_half_precision_the_probe_still_tells_them_apart() -> None:
    for build, mode in ((bert, ENCODER_MODE), (llama, "positions")):
        encoder = build()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(8)  # random weights hardly attend; trained ones do
        assert find_packing_mode(encoder.bfloat16()) == mode


def test_a_backbone_that_mixes_texts_is_refused() -> None:
    """RoBERTa counts positions from another start, so that our positions give other states."""
    with pytest.raises(UserError, match="RobertaModel cannot run padding-free batches"):
        find_packing_mode(roberta())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_texts_of_a_packed_row_that_read_each_other_are_found(dtype: torch.dtype) -> None:
    def running_sums(row: Sequence[int]) -> Tensor:
        return torch.tensor(row, dtype=dtype).cumsum(0)

    assert packed_rows_keep_texts_apart(lambda texts: torch.cat([running_sums(text) for text in texts]), dtype)
    assert not packed_rows_keep_texts_apart(
        lambda texts: running_sums([token for text in texts for token in text]), dtype
    )
