"""Tasks of a language model: prompts with their answers, and chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ortholora.config.tasks.language import LanguageTask, is_generated
from ortholora.data.encoded import EncodedSplit
from ortholora.data.table import as_text, cell_problem
from ortholora.errors import TemplateError
from ortholora.models.spec import TaskSpec
from ortholora.text.chat import Chat
from ortholora.text.completion import Completion
from ortholora.text.dialogue import Dialogue
from ortholora.text.prompts import each, longest_answered, mark

if TYPE_CHECKING:
    from ortholora.data.task import Split, TaskData


@dataclass(frozen=True)
class LanguageSpec(TaskSpec):
    """What a language model has to know of a task. What its rows are is said by the subclasses.

    Attributes:
        labels: The closed set of answers; None for open ones.
        metric: Name of the task's metric, for whoever loads the adapter.
        max_new_tokens: Longest answer to generate, in tokens.
        turns: Which of the assistant's messages were learned from.
    """

    metric: str | None = None
    max_new_tokens: int = 64
    turns: Literal["all", "last"] = "all"

    reads_json: ClassVar[bool] = True
    #: The class of the rows.
    rows: ClassVar[type[Dialogue]]

    @classmethod
    def of(cls, task: TaskData) -> Self:
        """What a language model needs to know of a task."""
        spec = task.spec
        assert isinstance(spec, LanguageTask)
        return cls(task.name, spec.kind, task.labels, spec.metric, spec.max_new_tokens, spec.turns)

    @property
    def writes(self) -> bool:
        """Whether answers are generated: in evaluation, or by `predict`."""
        return self.labels is None or is_generated(self.metric)

    @property
    def learns_last_only(self) -> bool:
        """Whether a row's last answer is all that is learned from it."""
        return self.turns == "last"

    def longest_row(self, max_length: int) -> int:
        """Tokens of the longest prompt with the longest answer to generate."""
        return longest_answered(max_length, self.max_new_tokens)

    def encode(self, split: Split, tokenizer: Any, max_length: int) -> EncodedSplit:
        """Tokens with their answers marked; a row counts its target tokens in its task's mean loss."""
        try:
            marked = each(split.texts, lambda row: mark(tokenizer, row, max_length, self.turns))
        except TemplateError as error:
            raise error.of(split.place(error.row or 0)) from None
        features = {"input_ids": [row.ids for row in marked], "labels": [row.labels for row in marked]}
        lengths, cut = [len(row.ids) for row in marked], sum(row.was_cut for row in marked)
        return EncodedSplit(split.texts, features, split.targets, lengths, [row.targets for row in marked], cut)

    def question(self, values: Sequence[object], tools: object = None) -> tuple[Any, str | None]:
        """A prompt or a message, or the messages so far, with tools where the row has some."""
        value: Any = values[0]
        if not isinstance(value, list):
            return as_text(value), cell_problem(value, "text")
        question = value if tools is None else {"messages": value, "tools": tools}
        return question, None if self.rows.can_ask(question) else f"no question; expected {self.rows.expects}"


class CompletionSpec(LanguageSpec):
    """A task of `kind: completion`."""

    rows: ClassVar[type[Dialogue]] = Completion

    @property
    def learns_last_only(self) -> bool:
        """A completion is one answer."""
        return True


class ChatSpec(LanguageSpec):
    """A task of `kind: chat`."""

    rows: ClassVar[type[Dialogue]] = Chat
