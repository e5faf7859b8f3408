"""Prompts with completions: the border between them, the end, what may be asked."""

from __future__ import annotations

from typing import Any

import pytest

from ortholora.errors import UserError
from ortholora.text.completion import Completion
from ortholora.text.prompts import mark, prompt_ids


def test_a_completion_is_prompt_then_answer_then_end(tokenizer: Any, targets: Any) -> None:
    marked = mark(tokenizer, Completion("sky colour :", "blue"), 20)
    assert tokenizer.decode(marked.ids) == "<s> sky colour : blue </s>"
    assert targets(marked) == "blue </s>"
    assert marked.targets == 2
    assert prompt_ids(tokenizer, Completion("sky colour :", "blue"), 20) == marked.ids[:-2]


def test_what_the_tokenizer_puts_last_does_not_end_the_prompt(tokenizer: Any) -> None:
    class EndsTexts:
        eos_token_id, sep_token_id, bos_token_id = 3, None, 2

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            return {"input_ids": [*ids, 3] if add_special_tokens else ids}

    marked = mark(EndsTexts(), Completion("sky :", "blue"), 20)
    assert tokenizer.decode(marked.ids) == "<s> sky : blue </s>"


def test_a_border_inside_of_the_text_is_kept_where_it_is_one_between_tokens() -> None:
    """Tokenizers that start every text with a space of their own would put it into the middle of a word."""

    class StartsWithSpace:
        eos_token_id, sep_token_id, bos_token_id = 0, None, None

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in " " + text]}

    marked = mark(StartsWithSpace(), Completion("a:", " b"), 20)
    assert "".join(map(chr, marked.ids[:-1])) == " a: b"
    assert marked.labels[-3:] == [ord(" "), ord("b"), 0]


def test_a_tokenizer_without_an_end_is_refused() -> None:
    class Endless:
        eos_token_id = sep_token_id = bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]}

    with pytest.raises(UserError, match="no end-of-text token"):
        mark(Endless(), Completion("a", "b"), 20)


def test_another_answer() -> None:
    assert Completion("a", "b").with_answer("c") == Completion("a", "c")
    assert Completion("a", "b").answer == "b"
    assert Completion.asking("a").with_answer("b") == Completion("a", "b")


def test_what_may_be_asked() -> None:
    assert Completion.can_ask("why?")
    assert not any(map(Completion.can_ask, ["", " \n", None, 3, [{"role": "user", "content": "why?"}]]))
