"""The rows of a file as questions of one task of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.stream import stream_rows
from ortholora.errors import UserError
from ortholora.models.card import ModelCard


class Asked(NamedTuple):
    """A row of the file.

    Attributes:
        number: Its number; the first row of data is row 1.
        question: As `Predictor.predict` takes it.
        problem: Why it cannot be answered; None of a good one.
    """

    number: int
    question: Any
    problem: str | None


@dataclass(frozen=True)
class Questions:
    """The rows of a file; every loop over it reads the file anew.

    Attributes:
        path: The file.
        card: The run's card.
        config: The task's configuration.
        text: The text columns, where they are not those of the configuration.
    """

    path: Path
    card: ModelCard
    config: TaskConfig
    text: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        wanted = self.card.tasks[self.card.index_of(self.task)].num_texts
        if len(self.columns) != wanted:
            raise UserError(
                f"--text names {len(self.columns)} columns",
                expected=f"{wanted} for task {self.task!r}" + ", separated by a comma" * (wanted > 1),
                found=", ".join(self.columns) or "nothing",
                todo="correct the option",
            )

    @property
    def task(self) -> str:
        """The task."""
        return self.config.name

    @property
    def columns(self) -> tuple[str, ...]:
        """The text columns."""
        return self.text or self.config.columns[0]

    def __iter__(self) -> Iterator[Asked]:
        spec = self.card.tasks[self.card.index_of(self.task)]
        tools = getattr(self.config, "tools", None) or "tools"
        also = [tools] if self.config.form == "chats" else []
        for row in stream_rows(self.path, self.columns, also, tsv_quotes=self.config.tsv_quotes):
            if row.problem is not None:
                yield Asked(row.number, None, row.problem)
            else:
                values = [row.values.get(column) for column in self.columns]
                yield Asked(row.number, *spec.question(values, row.values.get(tools)))
