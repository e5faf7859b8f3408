"""Every kind of LoRA that the engine captures, each as a tiny model; `docs/every-lora.md` is its table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import config as peft_config
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralModel,
    Qwen3MoeConfig,
    Qwen3MoeModel,
    ResNetConfig,
    ResNetModel,
)

from . import _models as models

ROWS, TOKENS = 6, 3
ONE_PASS, TASK_PURE = "one pass", "task-pure only"


@dataclass
class Case:
    """A PEFT model, a batch for it, and the base as it was before PEFT saw it.

    Attributes:
        sample: The model with one batch.
        bare: What plain PEFT loads the saved adapter onto.
    """

    sample: models.Sample
    bare: nn.Module


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        build: Makes a new random case.
        capture: `one pass` or `task-pure only`.
        fused: Whether its one-pass layers run fused (all of them or none).
        joint: What the names of its trainable parameters that are neither A nor B contain.
    """

    build: Callable[[], Case]
    capture: str = ONE_PASS
    fused: bool = True
    joint: tuple[str, ...] = ()


def adapt(base: nn.Module, inputs: dict[str, Tensor], target: Tensor, draw: bool = True, **config: Any) -> Case:
    """Wrap a base with PEFT, and keep a copy from before (some initialisations change the base)."""
    bare = copy.deepcopy(base)
    model = get_peft_model(base, LoraConfig(**{"r": 2, "lora_alpha": 4, **config}))
    if draw:
        models.draw_lora(model)
    return Case(models.Sample(model.train(), inputs, target), bare)


def stack(sizes: tuple[int, ...] = (5, 6, 4), repeat: bool = False, **config: Any) -> Case:
    sizes_list = list(sizes)
    inputs = {"x": torch.randn(ROWS, TOKENS, sizes[0])}
    defaults = {"target_modules": ["layers.0", "layers.1", *(["shared"] if repeat else [])]}
    return adapt(models.Stack(sizes_list, repeat), inputs, torch.randn(ROWS, TOKENS, sizes[-1]), **(defaults | config))


def llama(**config: Any) -> Case:
    defaults = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    return words(LlamaModel(LlamaConfig(num_key_value_heads=1, **models._decoder())), **(defaults | config))


def words(base: nn.Module, width: int = 8, **config: Any) -> Case:
    """A case of a model that reads words; every word up to 8 occurs."""
    ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % 9 + 3
    return adapt(base, {"input_ids": ids}, torch.randn(ROWS, TOKENS, width), **config)


def gpt2() -> Case:
    sizes = {"vocab_size": models.VOCAB, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return words(GPT2Model(GPT2Config(**sizes, **off)), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)


def classifier() -> Case:
    config = BertConfig(
        vocab_size=models.VOCAB,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    case = words(
        BertForSequenceClassification(config), target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    case.sample.target = torch.randn(ROWS, 3)
    return case


def layer_twice(**config: Any) -> Case:
    """Two layers of the same size whose A is one parameter: they share what they read."""
    case = stack((6, 6, 6), **config)
    first, second = (case.sample.model.base_model.model.layers[i] for i in (0, 1))
    second.lora_A["default"].weight = first.lora_A["default"].weight
    return case


def tokens() -> Case:
    return llama(trainable_token_indices={"embed_tokens": [3, 5]})


def embeddings() -> Case:
    return llama(target_modules=["embed_tokens", "q_proj"])


def language_model() -> Case:
    """LoRA on the output head of a language model."""
    base = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **models._decoder()))
    return words(base, models.VOCAB, target_modules=["q_proj", "lm_head"])


def mixtral(**config: Any) -> Case:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    return words(MixtralModel(MixtralConfig(num_key_value_heads=1, **experts, **models._decoder())), **config)


def qwen3_moe(**config: Any) -> Case:
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "head_dim": 4}
    return words(Qwen3MoeModel(Qwen3MoeConfig(num_key_value_heads=1, **experts, **models._decoder())), **config)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


class Image(nn.Module):
    """A small ResNet whose feature map is read as tokens; its BatchNorm is frozen, as in fine-tuning on few images."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1]}
        self.body = ResNetModel(ResNetConfig(num_channels=3, layer_type="basic", **sizes))

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.body(pixel_values).last_hidden_state.flatten(2).transpose(1, 2)


def resnet() -> Case:
    images = torch.randn(ROWS, 3, 16, 16)
    return adapt(Image(), {"pixel_values": images}, torch.randn(ROWS, 4, 8), target_modules=["convolution"])


def attention() -> Case:
    sample = models.attention(ROWS, TOKENS)
    bare = copy.deepcopy(sample.model).unload()
    return Case(sample, bare)


def bdlora() -> Case:
    blocks = peft_config.BdLoraConfig(target_modules_bd_a=["layers.0"], target_modules_bd_b=["layers.1"], nblocks=2)
    return stack((8, 8, 8), use_bdlora=blocks)


def alora() -> Case:
    """The adapter works from the last invocation token (4, in every other row) on."""
    base = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **models._decoder()))
    settings = {"task_type": "CAUSAL_LM", "alora_invocation_tokens": [4]}
    case = words(base, models.VOCAB, target_modules=["q_proj", "v_proj"], **settings)
    case.sample.inputs["input_ids"][:, 0] = 4
    return case


#: Name in the table → kind.
KINDS: dict[str, Kind] = {
    "LoRA": Kind(llama),
    "rsLoRA": Kind(lambda: llama(use_rslora=True)),
    "LoRA dropout": Kind(lambda: llama(lora_dropout=0.3)),
    "rank_pattern / alpha_pattern": Kind(
        lambda: llama(rank_pattern={"q_proj": 3, "layers.1.mlp.down_proj": 1}, alpha_pattern={"v_proj": 8})
    ),
    "all-linear": Kind(lambda: llama(target_modules="all-linear")),
    "fan_in_fan_out (GPT-2)": Kind(gpt2),
    "PiSSA": Kind(lambda: llama(init_lora_weights="pissa", draw=False)),
    "OLoRA": Kind(lambda: llama(init_lora_weights="olora", draw=False)),
    "lora_bias": Kind(lambda: stack(lora_bias=True), fused=False, joint=("lora_B.default.bias",)),
    'bias="lora_only"': Kind(lambda: stack(bias="lora_only"), fused=False, joint=("base_layer.bias",)),
    "repeated layer": Kind(lambda: stack(repeat=True)),
    "tied matrices": Kind(layer_twice),
    "layer_replication": Kind(lambda: llama(layer_replication=[(0, 2), (0, 2)])),
    "lm_head": Kind(language_model),
    "modules_to_save": Kind(classifier, joint=("classifier.modules_to_save",)),
    "trainable_token_indices": Kind(tokens, joint=("trainable_tokens_delta",)),
    "MoE, attention": Kind(lambda: mixtral(target_modules=["q_proj", "v_proj"])),
    "MoE, target_parameters": Kind(lambda: mixtral(target_modules=[], target_parameters=EXPERTS), TASK_PURE),
    "MoE, both": Kind(lambda: qwen3_moe(target_modules=["q_proj"], target_parameters=EXPERTS), TASK_PURE),
    "DoRA": Kind(lambda: llama(use_dora=True), TASK_PURE, joint=("lora_magnitude_vector",)),
    "embedding": Kind(embeddings, TASK_PURE),
    "Conv2d": Kind(resnet, TASK_PURE),
    "nn.MultiheadAttention": Kind(attention, TASK_PURE),
    "KaSA": Kind(lambda: stack(kasa_config=peft_config.KasaConfig()), TASK_PURE, joint=("lora_diag",)),
    "VeLoRA": Kind(lambda: stack((8, 8, 8), velora_config=peft_config.VeloraConfig()), TASK_PURE),
    "MonteCLoRA": Kind(
        lambda: stack((8, 8, 8), monteclora_config=peft_config.MontecloraConfig()),
        TASK_PURE,
        joint=("lora_monteclora_sampler",),
    ),
    "MiCA": Kind(lambda: stack(init_lora_weights="mica", draw=False), TASK_PURE),
    "BD-LoRA": Kind(bdlora, TASK_PURE),
    "aLoRA": Kind(alora, TASK_PURE),
}
