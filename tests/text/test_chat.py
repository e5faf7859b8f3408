"""Chats: which messages are targets, what may be asked, what a template may not do."""

from __future__ import annotations

from typing import Any

import pytest

from chats import chat
from ortholora.errors import UserError
from ortholora.text.chat import Chat
from ortholora.text.prompts import mark


def test_all_answers_of_a_chat_are_targets_and_their_ends(tokenizer: Any, targets: Any) -> None:
    marked = mark(tokenizer, chat("repeat 1", "1", "repeat 2 3", "2 3"), 40)
    assert targets(marked) == "1 </s> 2 3 </s>"
    whole = "user : repeat 1 </s> assistant : 1 </s> user : repeat 2 3 </s> assistant : 2 3 </s>"
    assert tokenizer.decode(marked.ids) == whole


def test_the_last_answer_only(tokenizer: Any, targets: Any) -> None:
    marked = mark(tokenizer, chat("repeat 1", "1", "repeat 2 3", "2 3"), 40, turns="last")
    assert targets(marked) == "2 3 </s>"


def test_a_chat_that_the_assistant_opens(tokenizer: Any, targets: Any) -> None:
    opened = Chat(({"role": "assistant", "content": "say"}, *chat("repeat 1", "1").messages))
    marked = mark(tokenizer, opened, 40)
    assert targets(marked) == "1 </s>"


def test_no_template_is_refused(tokenizer: Any) -> None:
    class Bare:
        chat_template, name_or_path = None, "x"

    with pytest.raises(UserError, match="no chat template"):
        mark(Bare(), chat("repeat 1", "1"), 20)


def test_a_template_that_rewrites_is_refused_until_the_last_turn_is_enough(tokenizer: Any) -> None:
    kept = tokenizer.chat_template
    # Like templates that drop the reasoning of earlier turns.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + (' : ' if loop.last else ' ') + m['content'] + ' </s> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )
    try:
        with pytest.raises(UserError, match="turns: last"):
            mark(tokenizer, chat("repeat 1", "1", "repeat 2", "2"), 40)
        tokenizer.chat_template = kept.replace("'assistant : '", "'assistant says '")
        with pytest.raises(UserError, match="use another backbone"):
            mark(tokenizer, chat("repeat 1", "1"), 40, turns="last")
    finally:
        tokenizer.chat_template = kept


def test_a_template_that_raises_is_the_users_error(tokenizer: Any) -> None:
    kept = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        with pytest.raises(UserError, match="roles must alternate"):
            mark(tokenizer, chat("repeat 1", "1"), 40)
    finally:
        tokenizer.chat_template = kept


def test_another_answer() -> None:
    other = chat("repeat 1", "1").with_answer("2")
    assert other.answer == "2"
    assert other.messages[:-1] == chat("repeat 1", "1").messages[:-1]
    assert Chat.asking("hello") == chat("hello", "")
    asked = [{"role": "user", "content": "hello", "name": "x"}]
    assert Chat.asking(asked).messages[0] == asked[0]


@pytest.mark.parametrize(
    ("question", "good"),
    [
        ("why?", True),
        (" ", False),
        ([{"role": "user", "content": "why?"}], True),
        ([{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}], False),
        ([{"role": "user"}], False),
        (["why?"], False),
        ([], False),
        (None, False),
    ],
    ids=str,
)
def test_what_may_be_asked(question: Any, good: bool) -> None:
    assert Chat.can_ask(question) is good
