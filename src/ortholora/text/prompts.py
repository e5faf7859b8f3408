"""Rows with answers → tokens, with the answer marked. Used for training, evaluation and prediction alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ortholora.errors import TemplateError
from ortholora.text.dialogue import Dialogue
from ortholora.text.tokenise import special_tokens

#: Label of a token that is no target (what `torch.nn.functional.cross_entropy` ignores).
IGNORED = -100

T = TypeVar("T")


@dataclass(frozen=True)
class Marked:
    """A tokenised row.

    Attributes:
        ids: Token ids.
        labels: The id where the token is part of an answer, else `IGNORED`; the first is always ignored.
        was_cut: Whether the row was longer.
    """

    ids: list[int]
    labels: list[int]
    was_cut: bool = False

    @property
    def targets(self) -> int:
        """Number of target tokens."""
        return sum(label != IGNORED for label in self.labels)


def mark(tokenizer: Any, row: Dialogue, max_length: int, turns: str = "all") -> Marked:
    """Tokenise a row and mark its answer.

    Args:
        tokenizer: The backbone's tokenizer.
        row: The row.
        max_length: Most tokens; a longer row loses the beginning of its prompt (not the token that starts a text), down
            to half of `max_length`, then the end of its answer.
        turns: `"all"` or `"last"`: which of the assistant's messages are answers.

    Raises:
        UserError: The tokenizer has no end-of-text token or no chat template, or its template does not go on where
            it stopped.
    """
    ids: list[int] = []
    labels: list[int] = []
    for tokens, targets in row.pieces(tokenizer, turns):
        ids += tokens
        labels += tokens[:targets] + [IGNORED] * (len(tokens) - targets)
    labels[0] = IGNORED
    return _fit(ids, labels, max_length, tokenizer.bos_token_id)


def each(rows: Iterable[Dialogue], written: Callable[[Dialogue], T]) -> list[T]:
    """Write out every row.

    Args:
        rows: The rows.
        written: Makes tokens of one.

    Raises:
        TemplateError: A row cannot be written out; the error says which.
    """
    found = []
    for index, row in enumerate(rows):
        try:
            found.append(written(row))
        except TemplateError as error:
            error.row = index
            raise
    return found


def prompt_ids(tokenizer: Any, row: Dialogue, max_length: int, max_new_tokens: int = 0) -> list[int]:
    """Tokens of a row's prompt: all before the (last) answer.

    A long one is cut like that of a row with an answer of `max_new_tokens`: at its beginning, down to half of
    `max_length`.
    """
    ids = row.prompt_tokens(tokenizer)
    room = _room(max_length, max_new_tokens)
    return ids if len(ids) <= room else _tail(ids, room, tokenizer.bos_token_id)


def longest_answered(max_length: int, max_new_tokens: int) -> int:
    """Tokens of the longest prompt of `prompt_ids` with the longest answer."""
    return _room(max_length, max_new_tokens) + max_new_tokens


def _room(max_length: int, max_new_tokens: int) -> int:
    return max(max_length - max_new_tokens, max_length // 2, 1)


def ends(tokenizer: Any, rows: type[Dialogue]) -> list[int]:
    """Tokens that end an answer: what such rows end with in training, and the tokenizer's own end of text."""
    marked = mark(tokenizer, rows.asking("a").with_answer("b"), 4096, turns="last")
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    special = [token for token in marked.labels[-1:] if token in special_tokens(tokenizer)]
    return sorted({*own, *special})


def _fit(ids: list[int], labels: list[int], max_length: int, start: int | None) -> Marked:
    if len(ids) <= max_length:
        return Marked(ids, labels)
    last = len(ids) - 1
    while last > 0 and labels[last - 1] != IGNORED:
        last -= 1
    room = max(max_length - last, (max_length + 1) // 2)
    answer, context = slice(last, last + room), max_length - min(room, len(ids) - last)
    labels = labels[last - context : last] + labels[answer]
    ids = _tail(ids[:last], context, start) + ids[answer]
    # What follows a start that was put over a cut has lost what it depends on.
    kept = 2 if ids[0] == start and context < last else 1
    return Marked(ids, [IGNORED] * kept + labels[kept:], was_cut=True)


def _tail(ids: list[int], room: int, start: int | None) -> list[int]:
    """The last tokens, behind the one that starts a text if there was one."""
    if room >= len(ids):
        return list(ids)
    return [ids[0], *ids[len(ids) - room + 1 :]] if ids[0] == start and room > 1 else ids[len(ids) - room :]
