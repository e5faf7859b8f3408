"""What is known of a task without its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from ortholora.data.encoded import EncodedSplit
    from ortholora.data.task import Split, TaskData


@dataclass(frozen=True)
class TaskSpec:
    """A task as a model sees it; saved with the adapter.

    A kind of task is a subclass in a file of its own and a line of `models/kinds.py`.

    Attributes:
        name: The task.
        kind: What the configuration calls this kind of task.
        labels: Class names, or the closed set of answers; None where there are none.
    """

    name: str
    kind: str
    labels: tuple[str, ...] | None = None

    #: What a saved task must say of itself: the default would be a guess.
    needed: ClassVar[tuple[str, ...]] = ("labels",)

    #: Whether a question may also be written in JSON: a text, or the messages of a chat.
    reads_json: ClassVar[bool] = False

    @property
    def num_texts(self) -> int:
        """Texts that a question of the task consists of."""
        return 1

    @classmethod
    def of(cls, task: TaskData) -> Self:
        """What a model needs to know of a task with its data."""
        raise NotImplementedError

    def encode(self, split: Split, tokenizer: Any, max_length: int) -> EncodedSplit:
        """Tokenise the rows of a split; longer ones are cut at `max_length` tokens."""
        raise NotImplementedError

    def question(self, values: Sequence[object], tools: object = None) -> tuple[Any, str | None]:
        """A row of a file as a question for `AdaptedModel.predict`.

        Args:
            values: What the row has in the text columns; None for what is missing.
            tools: What it has in the column of tools (a chat).

        Returns:
            The question, and what is wrong with it: None of one that can be answered.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Check that the fields go together; for what is read from a file.

        Raises:
            ValueError: They do not.
        """
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"task `{self.name}` with a label twice")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)
