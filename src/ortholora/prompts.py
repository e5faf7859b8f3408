"""Prompts and answers → tokens, with the answer marked. Used for training, evaluation and prediction alike.

Prompt and answer are tokenised apart and joined: at the boundary there are then the very tokens that generation
starts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ortholora.errors import UserError

#: Label of a token that is no target (what `torch.nn.functional.cross_entropy` ignores).
IGNORED = -100

#: A row of a language-model task: `(prompt, completion)`, or `(messages as JSON,)`.
Row = tuple[str, ...]


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


def mark(tokenizer: Any, kind: str, row: Row, max_length: int, turns: str = "all") -> Marked:
    """Tokenise a row and mark its answer.

    Args:
        tokenizer: The backbone's tokenizer.
        kind: `"completion"` or `"chat"`.
        row: See `Row`.
        max_length: Most tokens; a longer row loses the beginning of its prompt, down to half of `max_length`, then
            the end of its answer.
        turns: `"all"` or `"last"`: which of the assistant's messages are answers.

    Raises:
        UserError: The tokenizer has no end-of-text token or no chat template, or its template does not go on where
            it stopped.
    """
    pieces = _completion(tokenizer, row) if kind == "completion" else _chat(tokenizer, row, turns)
    ids: list[int] = []
    labels: list[int] = []
    for tokens, targets in pieces:
        ids += tokens
        labels += tokens[:targets] + [IGNORED] * (len(tokens) - targets)
    labels[0] = IGNORED
    return _fit(ids, labels, max_length)


def prompt_ids(tokenizer: Any, kind: str, row: Row, max_length: int, max_new_tokens: int = 0) -> list[int]:
    """Tokens of a row's prompt: all before the (last) answer, with room left for a new one."""
    if kind == "completion":
        ids = _prompt(tokenizer, row[0])
    else:
        ids = _tokens(tokenizer, _render(tokenizer, messages_of(row)[:-1], prompt=True))
    return ids[-max(1, max_length - max_new_tokens) :]


def with_answer(kind: str, row: Row, answer: str) -> Row:
    """The row with another (last) answer."""
    if kind == "completion":
        return row[0], answer
    return (dump_messages([*messages_of(row)[:-1], {"role": "assistant", "content": answer}]),)


def answer_of(kind: str, row: Row) -> str:
    """The row's (last) answer."""
    return row[1] if kind == "completion" else str(messages_of(row)[-1]["content"])


def ask(kind: str, prompt: str | Sequence[dict[str, Any]]) -> Row:
    """A row without an answer, from what a user asks: a prompt, a message, or the messages so far."""
    if kind == "completion":
        return str(prompt), ""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    return (dump_messages([*asked, {"role": "assistant", "content": ""}]),)


def dump_messages(messages: Sequence[dict[str, Any]]) -> str:
    """Messages as one text."""
    return json.dumps(list(messages), ensure_ascii=False)


def messages_of(row: Row) -> list[dict[str, Any]]:
    """The messages of a chat row."""
    return json.loads(row[0])


def _completion(tokenizer: Any, row: Row) -> list[tuple[list[int], int]]:
    prompt, answer = _prompt(tokenizer, row[0]), [*_tokens(tokenizer, row[1]), _end(tokenizer)]
    return [(prompt, 0), (answer, len(answer))]


def _prompt(tokenizer: Any, text: str) -> list[int]:
    """With what the tokenizer puts first, without what it puts last."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) else ids


def _chat(tokenizer: Any, row: Row, turns: str) -> Iterator[tuple[list[int], int]]:
    messages = messages_of(row)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    done = ""
    for i in answers if turns == "all" else answers[-1:]:
        before = _render(tokenizer, messages[:i], prompt=True)
        after = _render(tokenizer, messages[: i + 1], prompt=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise _rewrites(before if not before.startswith(done) else after, turns)
        yield _tokens(tokenizer, before[len(done) :]), 0
        answer = _tokens(tokenizer, after[len(before) :])
        targets = _until_end(tokenizer, answer)
        if i == answers[-1]:
            answer = answer[:targets]  # a line break after the end of the last turn is of no use
        yield answer, targets
        done = after


def _until_end(tokenizer: Any, answer: list[int]) -> int:
    """Number of tokens up to the one that ends the turn; all if the template has none."""
    ends = [i for i, token in enumerate(answer) if token == tokenizer.eos_token_id]
    return ends[-1] + 1 if ends else len(answer)


def _render(tokenizer: Any, messages: Sequence[dict[str, Any]], prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "The tokenizer has no chat template",
            expected="a tokenizer with a chat template for tasks of `kind: chat`",
            found=f"{type(tokenizer).__name__} of {getattr(tokenizer, 'name_or_path', '') or 'this backbone'} without",
            todo="use the instruction-tuned model, or `kind: completion`",
        )
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template is a program, which raises what it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            "The chat template refuses these messages",
            expected="messages in the roles and the order that the backbone's chat template takes",
            found=f"{reason}; roles {[message.get('role') for message in messages]}",
            todo="correct the rows, or use another backbone",
        ) from error


def _rewrites(text: str, turns: str) -> UserError:
    return UserError(
        "The chat template rewrites earlier messages",
        expected="a template that renders the first messages alike, whatever follows them",
        found=f"another beginning as the chat goes on: …{text[-80:]!r}",
        todo="set `turns: last`, to learn from the last answer only"
        if turns == "all"
        else "use another backbone, or put the chat into words with `kind: completion`",
    )


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "The tokenizer has no end-of-text token",
            expected="a tokenizer of a language model, with an eos token that ends an answer",
            found=f"{type(tokenizer).__name__} without",
            todo="use the tokenizer of a language model as `backbone`",
        )
    return int(tokenizer.eos_token_id)


def _fit(ids: list[int], labels: list[int], max_length: int) -> Marked:
    if len(ids) <= max_length:
        return Marked(ids, labels)
    last = len(ids) - 1
    while last > 0 and labels[last - 1] != IGNORED:
        last -= 1
    room = max(max_length - last, (max_length + 1) // 2)
    answer, context = slice(last, last + room), max_length - min(room, len(ids) - last)
    ids = ids[last - context : last] + ids[answer]
    labels = labels[last - context : last] + labels[answer]
    return Marked(ids, [IGNORED, *labels[1:]], was_cut=True)
