"""A prompt and its completion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from ortholora.errors import UserError
from ortholora.text.dialogue import Dialogue, Piece
from ortholora.text.tokenise import plain_tokens
from ortholora.text.utf8 import is_text


@dataclass(frozen=True)
class Completion(Dialogue):
    """A prompt, the completion that follows it as it is, and the end of the text.

    Attributes:
        prompt: What is asked.
        completion: The answer.
    """

    prompt: str
    completion: str

    expects: ClassVar[str] = "a text that is not empty"

    @classmethod
    def can_ask(cls, question: Any) -> bool:
        """A text that is not empty."""
        return isinstance(question, str) and bool(question.strip()) and is_text(question)

    @classmethod
    def asking(cls, question: str) -> Self:
        """A prompt alone."""
        return cls(question, "")

    @property
    def answer(self) -> str:
        """The completion."""
        return self.completion

    def with_answer(self, answer: str) -> Self:
        """The prompt with another completion."""
        return replace(self, completion=answer)

    def prompt_tokens(self, tokenizer: Any) -> list[int]:
        """The prompt's tokens."""
        return _open_text(tokenizer, self.prompt)

    def pieces(self, tokenizer: Any, turns: str) -> Iterator[Piece]:
        """The prompt, and the completion with the token that ends a text."""
        prompt, both = self.prompt_tokens(tokenizer), _open_text(tokenizer, self.prompt + self.completion)
        # Together where the border is one between tokens, too: some tokenizers start every text with a space of their
        # own.
        fits = both[: len(prompt)] == prompt and len(both) > len(prompt)
        answer = [*(both[len(prompt) :] if fits else plain_tokens(tokenizer, self.completion)), _end(tokenizer)]
        yield prompt, 0
        yield answer, len(answer)

    def serialised(self) -> list[str]:
        """Prompt and completion."""
        return [self.prompt, self.completion]


def _open_text(tokenizer: Any, text: str) -> list[int]:
    """With what the tokenizer puts first, without what it puts last."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) else ids


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "The tokenizer has no end-of-text token",
            expected="a tokenizer of a language model, with an eos token that ends an answer",
            found=f"{type(tokenizer).__name__} without",
            todo="use the tokenizer of a language model as `backbone`",
        )
    return int(tokenizer.eos_token_id)
