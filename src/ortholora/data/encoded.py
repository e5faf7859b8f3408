"""Tokenised rows, and the collator that makes one padded batch of several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.utils.data import Dataset

from ortholora.config.tasks.language import LanguageTask
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.task import Split, TaskData
from ortholora.text.prompts import mark
from ortholora.text.tokenise import count_cut, encode

#: One row of the mixed data set: (index of the task, index of the row in the task).
RowId = tuple[int, int]


@dataclass(frozen=True)
class MicroBatch:
    """Which rows run together.

    Attributes:
        rows: The rows.
        weights: Summed weight of every task's rows in the whole step, all micro-batches and ranks, `[T]`: what each
            task's sum of losses is divided by.
    """

    rows: tuple[RowId, ...]
    weights: tuple[int, ...]


@dataclass(frozen=True)
class EncodedSplit:
    """Tokenised rows of one task.

    Attributes:
        features: Tokenizer key → one list of ints a row.
        targets: Class indices or regression targets.
        lengths: Tokens of each row.
        weights: What each row counts in its task's mean loss: its target tokens, for a language model; else 1.
        cut: Number of rows that were longer than `max_length`.
    """

    features: dict[str, list[list[int]]]
    targets: Sequence[int] | Sequence[float]
    lengths: list[int]
    weights: list[int]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> dict[str, list[int]]:
        """One row's features."""
        return {key: values[index] for key, values in self.features.items()}


@dataclass(frozen=True)
class EncodedTask:
    """A task ready for training: its data, tokenised."""

    data: TaskData
    train: EncodedSplit
    dev: EncodedSplit


def encode_task(data: TaskData, tokenizer: Any, max_length: int) -> EncodedTask:
    """Tokenise both splits of a task."""
    train, dev = (encode_split(data.spec, split, tokenizer, max_length) for split in (data.train, data.dev))
    return EncodedTask(data, train, dev)


def encode_split(spec: TaskConfig, split: Split, tokenizer: Any, max_length: int) -> EncodedSplit:
    """Tokenise the rows of a split of a task."""
    if isinstance(spec, LanguageTask):
        rows = [mark(tokenizer, spec.kind, row, max_length, spec.turns) for row in split.texts]
        features = {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]}
        lengths, cut = [len(row.ids) for row in rows], sum(row.was_cut for row in rows)
        return EncodedSplit(features, split.targets, lengths, [row.targets for row in rows], cut)
    features = encode(tokenizer, list(split.texts), max_length)
    lengths = [len(ids) for ids in features["input_ids"]]
    cut = count_cut(tokenizer, list(split.texts), lengths, max_length)
    return EncodedSplit(features, split.targets, lengths, [1] * len(lengths), cut)


class MixedDataset(Dataset[dict[str, Any]]):
    """The training rows of all tasks, addressed by `(task, row)`."""

    def __init__(self, splits: Sequence[EncodedSplit]) -> None:
        self.splits = list(splits)

    def __len__(self) -> int:
        return sum(len(split) for split in self.splits)

    def __getitem__(self, index: RowId) -> dict[str, Any]:
        task, row = index
        split = self.splits[task]
        return {"features": split.row(row), "task": task, "target": float(split.targets[row])}


class MicroBatches(Dataset[dict[str, Any]]):
    """The same rows, addressed as `StepSampler` does: a micro-batch of them at a time."""

    def __init__(self, rows: MixedDataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: MicroBatch) -> dict[str, Any]:
        return {"rows": [self.rows[i] for i in index.rows], "weights": index.weights}


class Collator:
    """Rows → one batch, padded to its own longest row.

    Args:
        tokenizer: Gives `pad`.
        multiple: Pad to a multiple of this many tokens (matrix units of GPUs like 8).
        packed: Lay the rows end to end in one row instead of padding them.
    """

    def __init__(self, tokenizer: Any, multiple: int = 1, packed: bool = False) -> None:
        self.tokenizer, self.multiple, self.packed = tokenizer, multiple, packed

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Build one micro-batch.

        Returns:
            `inputs` (tensors `[B, S]`; packed: `[1, S]` and `lengths`, a list of B ints), `targets` `[B]`
            float, `task_ids` (list of B ints: left on the host on purpose, because nothing on the device needs
            them), and `tokens` (real, padded).
        """
        features = [row["features"] for row in rows]
        inputs = self.pack(features) if self.packed else self.pad(features)
        return {
            "inputs": inputs,
            "targets": torch.tensor([row["target"] for row in rows]),
            "task_ids": [row["task"] for row in rows],
            "tokens": (sum(len(f["input_ids"]) for f in features), inputs["input_ids"].numel()),
        }

    def step(self, micro_batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Build what the loader yields: `micro_batches`, a list of batches with the `weights` of the tasks `[T]`."""
        weights = [torch.tensor(micro_batch["weights"], dtype=torch.float32) for micro_batch in micro_batches]
        batches = [self(micro_batch["rows"]) for micro_batch in micro_batches]
        return {"micro_batches": [batch | {"weights": w} for batch, w in zip(batches, weights, strict=True)]}

    def pad(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """Tensors `[B, S]`, padded to the longest row."""
        return dict(self.tokenizer.pad(features, pad_to_multiple_of=self.multiple, return_tensors="pt"))

    def pack(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """Tensors `[1, S]` and the `lengths` of the rows."""
        keys = [key for key in features[0] if key != "attention_mask"]
        inputs: dict[str, Any] = {
            key: torch.tensor([list(chain.from_iterable(f[key] for f in features))]) for key in keys
        }
        return inputs | {"lengths": [len(f["input_ids"]) for f in features]}
