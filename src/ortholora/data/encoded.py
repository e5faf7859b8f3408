"""Tokenised rows, and the data sets that training takes them from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from ortholora.data.task import TaskData

#: One row of the mixed data set: (index of the task, index of the row in the task).
RowId = tuple[int, int]


@dataclass(frozen=True)
class MicroBatch:
    """Which rows run together.

    Attributes:
        rows: The rows.
        weights: Summed weight of every task's rows in the whole step, all micro-batches and ranks, `[T]`: what each
            task's sum of losses is divided by.
        halves: 0 or 1 for each of the rows, for rules that compare two halves of a step: the parity of its place
            among its task's rows of the whole step, so that neither the cut nor the number of ranks matters.
    """

    rows: tuple[RowId, ...]
    weights: tuple[int, ...]
    halves: tuple[int, ...] = ()


@dataclass(frozen=True)
class EncodedSplit:
    """Tokenised rows of one task.

    Attributes:
        texts: The rows as they were read; see `Split`.
        features: Tokenizer key → one list of ints a row.
        targets: Class indices or regression targets.
        lengths: Tokens of each row.
        weights: What each row counts in its task's mean loss: its target tokens, for a language model; else 1.
        cut: Number of rows that were longer than `max_length`.
    """

    texts: Sequence[Any]
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

    def take(self, share: slice) -> EncodedSplit:
        """Some of the rows."""
        features = {key: values[share] for key, values in self.features.items()}
        parts = self.texts[share], features, self.targets[share], self.lengths[share], self.weights[share]
        return EncodedSplit(*parts, self.cut)


@dataclass(frozen=True)
class EncodedTask:
    """A task ready for training: its data, tokenised."""

    data: TaskData
    train: EncodedSplit
    dev: EncodedSplit
    test: EncodedSplit | None = None

    @property
    def cut(self) -> int:
        """Rows of all parts that were longer than `max_length`."""
        return self.train.cut + self.dev.cut + (0 if self.test is None else self.test.cut)

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return len(self.train) + len(self.dev) + (0 if self.test is None else len(self.test))


class MixedDataset(Dataset[dict[str, Any]]):
    """The training rows of all tasks, addressed by `(task, row)`."""

    def __init__(self, splits: Sequence[EncodedSplit]) -> None:
        self.splits: list[EncodedSplit] = list(splits)

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
        rows = [self.rows[i] for i in index.rows]
        return {"rows": rows, "weights": index.weights, "halves": index.halves}
