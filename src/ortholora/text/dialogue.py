"""Rows of a language model's task: what is asked, and the answer. A kind of row is a subclass in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self

#: Tokens, and how many of them from the first on are targets.
Piece = tuple[list[int], int]


class Dialogue(ABC):
    """A row of text that ends with an answer. It never changes; `with_answer` gives another one.

    What stands before an answer and the answer are pieces of their own: the border between them is a border between
    tokens. So generation starts from the very tokens that an answer followed in training.
    """

    #: What a question may be, for messages.
    expects: ClassVar[str]

    @classmethod
    @abstractmethod
    def can_ask(cls, question: Any) -> bool:
        """Whether a user's question can be answered."""

    @classmethod
    @abstractmethod
    def asking(cls, question: Any) -> Self:
        """A row without an answer, from what a user asks."""

    @property
    @abstractmethod
    def answer(self) -> str:
        """The (last) answer."""

    @abstractmethod
    def with_answer(self, answer: str) -> Self:
        """The row with another (last) answer."""

    @abstractmethod
    def prompt_tokens(self, tokenizer: Any) -> list[int]:
        """The tokens of all before the (last) answer."""

    @abstractmethod
    def pieces(self, tokenizer: Any, turns: str) -> Iterator[Piece]:
        """The tokens of the whole row.

        Args:
            tokenizer: The backbone's tokenizer.
            turns: `"all"` or `"last"`: which answers are targets, where a row has several.

        Raises:
            UserError: The tokenizer cannot write such a row.
        """

    @abstractmethod
    def serialised(self) -> list[str]:
        """The row as texts, for digests; the same in every version."""
