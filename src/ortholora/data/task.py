"""A task's rows in memory: what every reader returns and everything after it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ortholora.config.tasks.union import TaskConfig


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        texts: The rows, all of one class of the room `text`: `Texts`, `Completion`, `Chat`.
        targets: Class indices (int) or regression targets (float), same length.
        shown: How messages name their source.
        numbers: The number of each row in its source; None where all of its rows are here.
    """

    texts: Sequence[Any]
    targets: Sequence[int] | Sequence[float]
    shown: str = field(default="the data", compare=False)
    numbers: Sequence[int] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def number(self, index: int) -> int:
        """The number of a row in its source, the first row of data being row 1."""
        return 1 + index if self.numbers is None else self.numbers[index]

    def place(self, index: int) -> str:
        """Where a row stands, for messages."""
        return f"{self.shown}, row {self.number(index)} (the first row of data is row 1)"

    def take(self, rows: Iterable[int]) -> Split:
        """Some of the rows, by their indices."""
        if isinstance(rows, range) and rows == range(len(self)):
            return self
        chosen = [int(row) for row in rows]
        numbers = [self.number(i) for i in chosen]
        return Split([self.texts[i] for i in chosen], [self.targets[i] for i in chosen], self.shown, numbers)


@dataclass(frozen=True)
class TaskData:
    """A task with its data.

    Attributes:
        spec: The task's configuration.
        labels: Class names in the order of the class indices; `None` for regression.
        train: Rows to learn from.
        dev: Rows to evaluate on.
        sources: Where each split came from and a SHA-256 of its rows, for the provenance of a result.
        dropped: Part → rows of its source that were left out (`bad_rows: drop`): number and reason.
        test: Rows to score on, where the task has some: what is chosen is then chosen on `dev`.
    """

    spec: TaskConfig
    labels: tuple[str, ...] | None
    train: Split
    dev: Split
    sources: dict[str, str] = field(default_factory=dict)
    test: Split | None = None
    dropped: dict[str, tuple[tuple[int, str], ...]] = field(default_factory=dict, kw_only=True)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.spec.name

    @property
    def scored_on(self) -> Literal["dev", "test"]:
        """The part that results are measured on."""
        return "dev" if self.test is None else "test"

    @property
    def scored(self) -> Split:
        """The rows that results are measured on."""
        return self.dev if self.test is None else self.test
