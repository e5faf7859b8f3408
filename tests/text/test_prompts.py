"""Rows with answers as tokens: what is cut, where generation starts and ends."""

from __future__ import annotations

from typing import Any

from chats import chat
from ortholora.text.chat import Chat
from ortholora.text.completion import Completion
from ortholora.text.prompts import IGNORED, ends, mark, prompt_ids


def test_a_long_prompt_loses_its_beginning(tokenizer: Any, targets: Any) -> None:
    marked = mark(tokenizer, Completion("a and the of in sky :", "blue"), 5)
    assert marked.was_cut
    assert tokenizer.decode(marked.ids) == "<s> sky : blue </s>"
    assert targets(marked) == "blue </s>"


def test_a_long_answer_loses_its_end_but_keeps_half(tokenizer: Any, targets: Any) -> None:
    marked = mark(tokenizer, Completion("in sky :", "0 1 2 3 4 5 6 7"), 6)
    assert tokenizer.decode(marked.ids) == "<s> sky : 0 1 2"
    assert targets(marked) == "0 1 2"
    assert len(marked.labels) == len(marked.ids) == 6


def test_a_short_prompt_leaves_room_to_a_long_answer(tokenizer: Any) -> None:
    marked = mark(tokenizer, Completion(":", "0 1 2 3 4 5 6 7"), 6)
    assert tokenizer.decode(marked.ids) == "<s> : 0 1 2 3"


def test_the_first_token_is_never_a_target(tokenizer: Any) -> None:
    for length in range(2, 12):
        marked = mark(tokenizer, chat("repeat 1", "1", "repeat 2 3", "2 3"), length)
        assert marked.labels[0] == IGNORED
        assert marked.targets > 0
        assert len(marked.ids) == length


def test_generation_starts_where_the_answer_would(tokenizer: Any) -> None:
    row = chat("repeat 1", "1", "repeat 2", "2")
    marked = mark(tokenizer, row, 40)
    start = prompt_ids(tokenizer, row, 40)
    assert marked.ids[: len(start)] == start
    assert tokenizer.decode(marked.ids[len(start) :]) == "2 </s>"
    assert prompt_ids(tokenizer, row, 30, max_new_tokens=14) == start  # 16 tokens
    assert prompt_ids(tokenizer, row, 12, max_new_tokens=5) == start[-7:]
    assert prompt_ids(tokenizer, row, 12, max_new_tokens=50) == start[-6:]  # never less than half


def test_the_end_of_a_turn_need_not_be_the_end_of_a_text(tokenizer: Any, targets: Any) -> None:
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept.replace("</s>", "<pad>")
    try:
        marked = mark(tokenizer, chat("repeat 1", "1"), 40)
        assert targets(marked) == "1 <pad>"
        assert ends(tokenizer, Chat) == [0, 3]
    finally:
        tokenizer.chat_template = kept
    assert ends(tokenizer, Completion) == ends(tokenizer, Chat) == [3]
