"""A tiny random Llama with LoRA, its tokenizer with a chat template, and rows of three tasks; no network."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny import WORDS

ROWS = 12
WHOLE = {"per_device_train_batch_size": ROWS}
TASKS = ["copy", "count", "rhyme"]
SPECIAL = ["<pad>", "<unk>", "<eos>", "user:", "assistant:"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} <eos>{% endgeneration %}"
    "{% else %}{{ message['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", model_max_length=64
    )
    made.chat_template = TEMPLATE
    return made


def base(attention: str = "eager") -> LlamaForCausalLM:
    """The same weights every time."""
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
        attn_implementation=attention,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(
        **{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        | options
    )


def adapted(seed: int = 1, attention: str = "eager", **options: Any) -> nn.Module:
    """The base with every LoRA matrix drawn at random: B = 0 would hide every gradient of A."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base(attention), lora(**options))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.2)
    return model


def rows(count: int, kind: str = "text", seed: int = 0, column: str = "task") -> Dataset:
    """Rows of unequal length and unequal number a task (`copy` has half of them)."""
    draw = random.Random(seed)
    made: dict[str, list[Any]] = {}
    for index in range(count):
        task = ["copy", "count", "copy", "rhyme"][index % 4]
        low, high = {"copy": (4, 12), "count": (2, 5), "rhyme": (3, 8)}[task]
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(2, 4))) + " "
        completion = " ".join(draw.choices(WORDS, k=draw.randint(low, high)))
        row: dict[str, Any] = {column: task}
        if kind == "text":
            row["text"] = prompt + completion + " "
        elif kind == "prompt":
            row |= {"prompt": prompt, "completion": completion + " "}
        else:
            row["messages"] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        for key, value in row.items():
            made.setdefault(key, []).append(value)
    return Dataset.from_dict(made)


def lora_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of an `SFTConfig` on the CPU, without logs, checkpoints and shuffling."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "max_length": 32,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 7,
    } | changes


def pairs(count: int, seed: int = 0) -> Dataset:
    """Rows of preferences, with the same tasks."""
    draw = random.Random(seed)
    made: dict[str, list[str]] = {"task": [], "prompt": [], "chosen": [], "rejected": []}
    for index in range(count):
        made["task"].append(["copy", "count", "copy", "rhyme"][index % 4])
        for key, most in (("prompt", 4), ("chosen", 6), ("rejected", 6)):
            made[key].append(" ".join(draw.choices(WORDS, k=draw.randint(2, most))) + " ")
    return Dataset.from_dict(made)


def sft_trainer(folder: Path, data: Dataset | None = None, kind: str = "text", **changes: Any) -> Any:
    """Keys that `SFTConfig` does not know go to the trainer or to the model."""
    from trl import SFTConfig

    from ortholora.trl import OrthoSFTTrainer

    own = {"rule", "loss", "fused", "task_weights", "task_column", "tasks", "eval_dataset", "block", "callbacks"}
    arguments = {key: changes.pop(key) for key in own & changes.keys()}
    model = changes.pop("model", None) or adapted(attention=changes.pop("attention", "sdpa"))
    return OrthoSFTTrainer(
        model,
        SFTConfig(**settings(folder, **changes)),
        train_dataset=rows(ROWS, kind) if data is None else data,
        processing_class=tokenizer(),
        **arguments,
    )


def recorded(made: Any) -> list[dict[str, Tensor]]:
    """Task gradients of every step, taken just before the rule sees them."""
    taken: list[dict[str, Tensor]] = []
    resolve = made.ortho.resolve

    def record(**given: Any) -> Any:
        taken.append({name: g.clone() for name, g in made.ortho.task_gradients().items()})
        return resolve(**given)

    made.ortho.resolve = record
    return taken


def named(gradients: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same under the names that the model's parameters have."""
    names = {name.removesuffix(".weight").removeprefix("base_model.model."): name for name in lora_weights(model)}
    return {names[n.removesuffix(".weight").removeprefix("base_model.model.")]: g for n, g in gradients.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    difference = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    assert difference < relative * scale, (difference, scale)
