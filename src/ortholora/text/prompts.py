"""Prompts and answers → tokens, with the answer marked. Used for training, evaluation and prediction alike.

The border between prompt and answer is a border between tokens: what stands before it are the very tokens that
generation starts from.
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
        max_length: Most tokens; a longer row loses the beginning of its prompt (not the token that starts a text), down
            to half of `max_length`, then the end of its answer.
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
    return _fit(ids, labels, max_length, tokenizer.bos_token_id)


def prompt_ids(tokenizer: Any, kind: str, row: Row, max_length: int, max_new_tokens: int = 0) -> list[int]:
    """Tokens of a row's prompt: all before the (last) answer.

    A long one is cut like that of a row with an answer of `max_new_tokens`: at its beginning, down to half of
    `max_length`.
    """
    if kind == "completion":
        ids = _prompt(tokenizer, row[0])
    else:
        ids = _tokens(tokenizer, _render(tokenizer, messages_of(row)[:-1], prompt=True))
    room = _room(max_length, max_new_tokens)
    return ids if len(ids) <= room else _tail(ids, room, tokenizer.bos_token_id)


def longest_answered(max_length: int, max_new_tokens: int) -> int:
    """Tokens of the longest prompt of `prompt_ids` with the longest answer."""
    return _room(max_length, max_new_tokens) + max_new_tokens


def _room(max_length: int, max_new_tokens: int) -> int:
    return max(max_length - max_new_tokens, max_length // 2, 1)


def ends(tokenizer: Any, kind: str) -> list[int]:
    """Tokens that end an answer: what rows of this kind end with in training, and the tokenizer's own end of text."""
    probe = ("a", "b") if kind == "completion" else ask("chat", "a")
    marked = mark(tokenizer, kind, with_answer(kind, probe, "b"), 4096, turns="last")
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    special = [token for token in marked.labels[-1:] if token in _special(tokenizer)]
    return sorted({*own, *special})


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
    return json.dumps(list(messages), ensure_ascii=False, default=str)


def messages_of(row: Row) -> list[dict[str, Any]]:
    """The messages of a chat row."""
    return json.loads(row[0])


def _completion(tokenizer: Any, row: Row) -> list[tuple[list[int], int]]:
    prompt, both = _prompt(tokenizer, row[0]), _prompt(tokenizer, row[0] + row[1])
    # Together where the border is one between tokens, too: some tokenizers start every text with a space of their own.
    fits = both[: len(prompt)] == prompt and len(both) > len(prompt)
    answer = [*(both[len(prompt) :] if fits else _tokens(tokenizer, row[1])), _end(tokenizer)]
    return [(prompt, 0), (answer, len(answer))]


def _prompt(tokenizer: Any, text: str) -> list[int]:
    """With what the tokenizer puts first, without what it puts last."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) else ids


def _chat(tokenizer: Any, row: Row, turns: str) -> Iterator[tuple[list[int], int]]:
    messages = messages_of(row)
    # A chat that the assistant opens: there is nothing yet that it could answer.
    answers = [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
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
    special = [i for i, token in enumerate(answer) if token in _special(tokenizer)]
    return special[-1] + 1 if special else len(answer)


def _special(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}


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
