"""A tiny random Llama folder and four small language-model tasks on disk: all that a real run needs, no network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from tiny import save_quietly, with_sections

COLOURS = {"grass": "green", "sky": "blue", "snow": "white", "coal": "black"}
ANIMALS = {"cat": "meow", "cow": "moo", "dog": "woof", "owl": "hoot"}
DIGITS = [str(i) for i in range(8)]
FILLERS = ["a", "and", "day", "in", "it", "of", "say", "the", "they", "was"]
MARKS = ["user", "assistant", "system", ":", "?", "colour", "sound", "next", "repeat", "yes", "no", "\n"]
WORDS = sorted({*COLOURS, *COLOURS.values(), *ANIMALS, *ANIMALS.values(), *DIGITS, *FILLERS, *MARKS})
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' </s>' }}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)
TASKS = ("colour", "sound", "count", "chat")


def write_language_model(folder: Path, hidden: int = 32, seed: int = 0) -> Path:
    """Write a random Llama that `AutoModelForCausalLM` and `AutoTokenizer` load from the folder."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * hidden,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    save_quietly(model, folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


def write_language_tasks(folder: Path, train: int = 64, dev: int = 24, seed: int = 0) -> None:
    """Write `qa` (colour and sound, split by `task`), `count` (completion) and `chat`, as JSONL, train and dev."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for part, rows in (("train", train), ("dev", dev)):
        lines: dict[str, list[dict[str, Any]]] = {"qa": [], "count": [], "chat": []}
        for _ in range(rows):
            thing, animal = draw.choice(sorted(COLOURS)), draw.choice(sorted(ANIMALS))
            lines["qa"].append(
                {"task": "colour", "prompt": _around(draw, thing, "colour"), "completion": COLOURS[thing]}
            )
            lines["qa"].append(
                {"task": "sound", "prompt": _around(draw, animal, "sound"), "completion": ANIMALS[animal]}
            )
            start = draw.randint(0, 4)
            text = " ".join(DIGITS[start : start + 2])
            lines["count"].append({"prompt": f"{text} next :", "completion": DIGITS[start + 2]})
            lines["chat"].append({"messages": _chat(draw)})
        for name, records in lines.items():
            text = "\n".join(json.dumps(record) for record in records)
            (folder / f"{part}-{name}.jsonl").write_text(text + "\n", encoding="utf-8")


def language_settings(folder: Path, **sections: Any) -> dict[str, Any]:
    """A configuration of the four tasks; sections as in `tiny_settings`."""
    settings: dict[str, Any] = {
        "backbone": str(folder / "llama"),
        "max_length": 48,
        "rule": "ortho",
        "tasks": [
            {
                "name": "colour",
                "kind": "completion",
                "train": "train-qa.jsonl",
                "dev": "dev-qa.jsonl",
                "split_by": "task",
                "only": "colour",
                "labels": sorted(COLOURS.values()),
            },
            {
                "name": "sound",
                "kind": "completion",
                "train": "train-qa.jsonl",
                "dev": "dev-qa.jsonl",
                "split_by": "task",
                "only": "sound",
                "metric": "exact_match",
                "max_new_tokens": 4,
            },
            {"name": "count", "kind": "completion", "train": "train-count.jsonl", "dev": "dev-count.jsonl"},
            {"name": "chat", "kind": "chat", "train": "train-chat.jsonl", "dev": "dev-chat.jsonl", "max_new_tokens": 6},
        ],
        "lora": {"r": 4, "target_modules": "all-linear"},
        "mixing": {"rows_per_task": 4},
        "training": {"steps": 6, "learning_rate": 0.01, "save_every": 2, "log_every": 2},
        "study": {"methods": ["single", "joint", "ortho"], "seeds": [0], "bootstrap": 100},
    }
    return with_sections(settings, sections)


def language_config(folder: Path, name: str = "language", **sections: Any) -> Path:
    """Write model and tasks (unless they are there) and a configuration.

    Returns:
        The YAML file.
    """
    if not (folder / "llama").is_dir():
        write_language_model(folder / "llama")
    if not (folder / "train-qa.jsonl").is_file():
        write_language_tasks(folder)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(language_settings(folder, **sections), sort_keys=False), encoding="utf-8")
    return path


def _around(draw: random.Random, word: str, ask: str) -> str:
    text = [word, *draw.choices(FILLERS, k=draw.randint(1, 5))]
    draw.shuffle(text)
    return " ".join([*text, ask, ":"])


def _chat(draw: random.Random) -> list[dict[str, str]]:
    """One or two turns; the assistant repeats what the user says."""
    messages = []
    for _ in range(draw.randint(1, 2)):
        text = " ".join(draw.choices(DIGITS, k=draw.randint(1, 3)))
        messages += [{"role": "user", "content": f"repeat {text}"}, {"role": "assistant", "content": text}]
    return messages
