"""Prompts and answers as tokens: what is a target, what is cut, what a chat template may not do."""

from __future__ import annotations

from typing import Any

import pytest

from ortholora.errors import UserError
from ortholora.text import prompts
from tiny_language import write_language_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from ortholora.models.backbone import load_tokenizer

    return load_tokenizer(str(write_language_model(tmp_path_factory.mktemp("llama"))))


def targets(tokenizer: Any, marked: prompts.Marked) -> str:
    return tokenizer.decode([label for label in marked.labels if label != prompts.IGNORED])


def chat(*texts: str) -> prompts.Row:
    roles = ["user", "assistant"] * len(texts)
    return (prompts.dump_messages([{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]),)


def test_a_completion_is_prompt_then_answer_then_end(tokenizer: Any) -> None:
    marked = prompts.mark(tokenizer, "completion", ("sky colour :", "blue"), 20)
    assert tokenizer.decode(marked.ids) == "<s> sky colour : blue </s>"
    assert targets(tokenizer, marked) == "blue </s>"
    assert marked.targets == 2
    assert prompts.prompt_ids(tokenizer, "completion", ("sky colour :", "blue"), 20) == marked.ids[:-2]


def test_what_the_tokenizer_puts_last_does_not_end_the_prompt(tokenizer: Any) -> None:
    class EndsTexts:
        eos_token_id, sep_token_id, bos_token_id = 3, None, 2

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            return {"input_ids": [*ids, 3] if add_special_tokens else ids}

    marked = prompts.mark(EndsTexts(), "completion", ("sky :", "blue"), 20)
    assert tokenizer.decode(marked.ids) == "<s> sky : blue </s>"


def test_all_answers_of_a_chat_are_targets_and_their_ends(tokenizer: Any) -> None:
    marked = prompts.mark(tokenizer, "chat", chat("repeat 1", "1", "repeat 2 3", "2 3"), 40)
    assert targets(tokenizer, marked) == "1 </s> 2 3 </s>"
    whole = "user : repeat 1 </s> assistant : 1 </s> user : repeat 2 3 </s> assistant : 2 3 </s>"
    assert tokenizer.decode(marked.ids) == whole


def test_the_last_answer_only(tokenizer: Any) -> None:
    marked = prompts.mark(tokenizer, "chat", chat("repeat 1", "1", "repeat 2 3", "2 3"), 40, turns="last")
    assert targets(tokenizer, marked) == "2 3 </s>"


def test_generation_starts_where_the_answer_would(tokenizer: Any) -> None:
    row = chat("repeat 1", "1", "repeat 2", "2")
    marked = prompts.mark(tokenizer, "chat", row, 40)
    start = prompts.prompt_ids(tokenizer, "chat", row, 40)
    assert marked.ids[: len(start)] == start
    assert tokenizer.decode(marked.ids[len(start) :]) == "2 </s>"
    assert prompts.prompt_ids(tokenizer, "chat", row, 30, max_new_tokens=14) == start  # 16 tokens
    assert prompts.prompt_ids(tokenizer, "chat", row, 12, max_new_tokens=5) == start[-7:]
    assert prompts.prompt_ids(tokenizer, "chat", row, 12, max_new_tokens=50) == start[-6:]  # never less than half


def test_a_border_inside_of_the_text_is_kept_where_it_is_one_between_tokens() -> None:
    """Tokenizers that start every text with a space of their own would put it into the middle of a word."""

    class StartsWithSpace:
        eos_token_id, sep_token_id, bos_token_id = 0, None, None

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in " " + text]}

    marked = prompts.mark(StartsWithSpace(), "completion", ("a:", " b"), 20)
    assert "".join(map(chr, marked.ids[:-1])) == " a: b"
    assert marked.labels[-3:] == [ord(" "), ord("b"), 0]


def test_the_end_of_a_turn_need_not_be_the_end_of_a_text(tokenizer: Any) -> None:
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept.replace("</s>", "<pad>")
    try:
        marked = prompts.mark(tokenizer, "chat", chat("repeat 1", "1"), 40)
        assert targets(tokenizer, marked) == "1 <pad>"
        assert prompts.ends(tokenizer, "chat") == [0, 3]
    finally:
        tokenizer.chat_template = kept
    assert prompts.ends(tokenizer, "completion") == prompts.ends(tokenizer, "chat") == [3]


def test_a_chat_that_the_assistant_opens(tokenizer: Any) -> None:
    messages = [{"role": "assistant", "content": "say"}, *prompts.messages_of(chat("repeat 1", "1"))]
    marked = prompts.mark(tokenizer, "chat", (prompts.dump_messages(messages),), 40)
    assert targets(tokenizer, marked) == "1 </s>"


def test_a_long_prompt_loses_its_beginning(tokenizer: Any) -> None:
    marked = prompts.mark(tokenizer, "completion", ("a and the of in sky :", "blue"), 5)
    assert marked.was_cut
    assert tokenizer.decode(marked.ids) == "<s> sky : blue </s>"
    assert targets(tokenizer, marked) == "blue </s>"


def test_a_long_answer_loses_its_end_but_keeps_half(tokenizer: Any) -> None:
    marked = prompts.mark(tokenizer, "completion", ("in sky :", "0 1 2 3 4 5 6 7"), 6)
    assert tokenizer.decode(marked.ids) == "<s> sky : 0 1 2"
    assert targets(tokenizer, marked) == "0 1 2"
    assert len(marked.labels) == len(marked.ids) == 6


def test_a_short_prompt_leaves_room_to_a_long_answer(tokenizer: Any) -> None:
    marked = prompts.mark(tokenizer, "completion", (":", "0 1 2 3 4 5 6 7"), 6)
    assert tokenizer.decode(marked.ids) == "<s> : 0 1 2 3"


def test_the_first_token_is_never_a_target(tokenizer: Any) -> None:
    for length in range(2, 12):
        marked = prompts.mark(tokenizer, "chat", chat("repeat 1", "1", "repeat 2 3", "2 3"), length)
        assert marked.labels[0] == prompts.IGNORED
        assert marked.targets > 0
        assert len(marked.ids) == length


def test_another_answer(tokenizer: Any) -> None:
    assert prompts.with_answer("completion", ("a", "b"), "c") == ("a", "c")
    other = prompts.with_answer("chat", chat("repeat 1", "1"), "2")
    assert prompts.answer_of("chat", other) == "2"
    assert prompts.messages_of(other)[0]["content"] == "repeat 1"
    assert prompts.messages_of(prompts.ask("chat", "hello"))[0] == {"role": "user", "content": "hello"}


def test_no_template_is_refused(tokenizer: Any) -> None:
    class Bare:
        chat_template, name_or_path = None, "x"

    with pytest.raises(UserError, match="no chat template"):
        prompts.mark(Bare(), "chat", chat("repeat 1", "1"), 20)


def test_a_template_that_rewrites_is_refused_until_the_last_turn_is_enough(tokenizer: Any) -> None:
    kept = tokenizer.chat_template
    # Like templates that drop the reasoning of earlier turns.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + (' : ' if loop.last else ' ') + m['content'] + ' </s> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
    )
    try:
        with pytest.raises(UserError, match="turns: last"):
            prompts.mark(tokenizer, "chat", chat("repeat 1", "1", "repeat 2", "2"), 40)
        tokenizer.chat_template = kept.replace("'assistant : '", "'assistant says '")
        with pytest.raises(UserError, match="use another backbone"):
            prompts.mark(tokenizer, "chat", chat("repeat 1", "1"), 40, turns="last")
    finally:
        tokenizer.chat_template = kept


def test_a_template_that_raises_is_the_users_error(tokenizer: Any) -> None:
    kept = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        with pytest.raises(UserError, match="roles must alternate"):
            prompts.mark(tokenizer, "chat", chat("repeat 1", "1"), 40)
    finally:
        tokenizer.chat_template = kept


def test_a_tokenizer_without_an_end_is_refused() -> None:
    class Endless:
        eos_token_id = sep_token_id = bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, 2]}

    with pytest.raises(UserError, match="no end-of-text token"):
        prompts.mark(Endless(), "completion", ("a", "b"), 20)
