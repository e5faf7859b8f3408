"""A tiny random BERT folder and three small learnable tasks on disk: everything a real run needs, no network."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

TOPICS = {
    "sport": ["goal", "match", "team", "coach", "league"],
    "money": ["bank", "market", "price", "profit", "tax"],
    "space": ["moon", "orbit", "planet", "rocket", "star"],
}
AGREE, DENY = ["indeed", "sure", "yes"], ["hardly", "never", "wrong"]
GOOD, BAD = ["bright", "fine", "great", "lovely"], ["awful", "dull", "grim", "poor"]
NOUNS = [word for words in TOPICS.values() for word in words]
FILLERS = ["a", "and", "day", "in", "it", "of", "people", "say", "that", "the", "they", "was"]
WORDS = sorted({*NOUNS, *AGREE, *DENY, *GOOD, *BAD, *FILLERS})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_backbone(folder: Path, hidden: int = 32, seed: int = 0) -> Path:
    """Write a random BERT that `AutoModel` and `AutoTokenizer` load from the folder.

    Args:
        folder: Where to; it is made if need be.
        hidden: Hidden size.
        seed: Seed of the weights; the global generator is left alone.

    Returns:
        The folder.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,  # with the usual 0.02, a random model tells no word from another
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    save_quietly(model, folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", model_max_length=40, **names)
    fast.save_pretrained(folder)
    return folder


def save_quietly(model: Any, folder: Path) -> None:
    """Save a transformers model without its progress bar."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()


def write_tasks(folder: Path, train: int = 96, dev: int = 48, seed: int = 0) -> None:
    """Write `topic.tsv`, `pair.csv` and `score.jsonl`, each as `train-…` and as `dev-…`.

    `topic`: one text of three classes (sport, money, space), columns `text`, `label`. `pair`: two texts,
    `yes` if the second agrees, columns `first`, `second`, `label`. `score`: good minus bad words, columns
    `text`, `score`. Sixty steps of `tiny_config` beat chance on each.

    Args:
        folder: Where to; it is made if need be.
        train: Training rows of each task.
        dev: Evaluation rows of each task.
        seed: Seed of the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for part, rows in (("train", train), ("dev", dev)):
        topics = [_topic(draw, index) for index in range(rows)]
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in topics)]
        (folder / f"{part}-topic.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        with (folder / f"{part}-pair.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("first", "second", "label"), *(_pair(draw, index) for index in range(rows))])
        scores = [dict(zip(("text", "score"), _score(draw, index), strict=True)) for index in range(rows)]
        lines = [json.dumps(row) for row in scores]
        (folder / f"{part}-score.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny_settings(folder: Path, **sections: Any) -> dict[str, Any]:
    """Return a configuration of the three tasks and the backbone in `folder`, as a plain dictionary.

    Args:
        folder: Holds `backbone/`; `tiny_config` writes it.
        sections: Top-level keys; a mapping is merged into the default's, anything else replaces it.
    """
    settings: dict[str, Any] = {
        "backbone": str(folder / "backbone"),
        "max_length": 24,
        "rule": "ortho",
        "tasks": [
            {"name": "topic", "train": "train-topic.tsv", "dev": "dev-topic.tsv"},
            {
                "name": "pair",
                "train": "train-pair.csv",
                "dev": "dev-pair.csv",
                "text": ["first", "second"],
                "labels": ["no", "yes"],
                "metric": "f1",
            },
            {
                "name": "score",
                "kind": "regression",
                "train": "train-score.jsonl",
                "dev": "dev-score.jsonl",
                "label": "score",
            },
        ],
        "lora": {"r": 4, "target_modules": "all-linear"},
        "mixing": {"rows_per_task": 4},
        "training": {"steps": 6, "learning_rate": 0.01, "save_every": 2, "log_every": 2},
        "study": {"methods": ["single", "joint", "ortho"], "seeds": [0], "bootstrap": 100},
    }
    return with_sections(settings, sections)


def with_sections(settings: dict[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Change top-level keys: a mapping is merged into the one that is there, anything else replaces it."""
    for key, value in sections.items():
        old = settings.get(key)
        settings[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return settings


def tiny_config(folder: Path, name: str = "tiny", **sections: Any) -> Path:
    """Write backbone and tasks (unless they are there) and a configuration.

    Args:
        folder: Where to.
        name: Name of the file, without its ending.
        sections: As for `tiny_settings`, for example `training={"steps": 3}`.

    Returns:
        The YAML file.
    """
    if not (folder / "backbone").is_dir():
        write_backbone(folder / "backbone")
    if not (folder / "train-topic.tsv").is_file():
        write_tasks(folder)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(folder, **sections), sort_keys=False), encoding="utf-8")
    return path


def _around(draw: random.Random, words: list[str]) -> str:
    """The words in random order among fillers."""
    text = [*words, *draw.choices(FILLERS, k=draw.randint(2, 6))]
    draw.shuffle(text)
    return " ".join(text)


def _topic(draw: random.Random, index: int) -> tuple[str, str]:
    label = sorted(TOPICS)[index % len(TOPICS)]
    return _around(draw, draw.choices(TOPICS[label], k=2)), label


def _pair(draw: random.Random, index: int) -> tuple[str, str, str]:
    first = _around(draw, draw.choices(NOUNS, k=1))
    return first, _around(draw, draw.choices((DENY, AGREE)[index % 2], k=2)), ("no", "yes")[index % 2]


def _score(draw: random.Random, index: int) -> tuple[str, float]:
    good, bad = draw.randint(0, 3), draw.randint(0, 3)
    text = _around(draw, [*draw.choices(GOOD, k=good), *draw.choices(BAD, k=bad)])
    return text, float(good - bad)
