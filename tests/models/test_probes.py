"""A row longer than the positions that a model learned is refused; rotary positions go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
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
from ortholora.models.heads import HeadSpec
from ortholora.models.language import LanguageSpec
from ortholora.models.multitask import add_lora
from ortholora.models.saving import ModelCard, wrap
from ortholora.models.trial import check_positions

SIZES = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
SIZES |= {"max_position_embeddings": 40}


def bert() -> nn.Module:
    return BertModel(BertConfig(**SIZES), add_pooling_layer=False)


def roberta() -> nn.Module:
    return RobertaModel(RobertaConfig(**SIZES, pad_token_id=1), add_pooling_layer=False)


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=31, n_embd=8, n_layer=1, n_head=2, n_positions=40))


def llama() -> nn.Module:
    return LlamaModel(LlamaConfig(**SIZES))


def gpt2_writer() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=8, n_layer=1, n_head=2, n_positions=40, bos_token_id=1))


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
