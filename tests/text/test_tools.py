"""Chats with tools, calls, results and reasoning: what is learned, and what a template leaves out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ortholora.errors import UserError
from ortholora.text.chat import Chat
from ortholora.text.messages import as_message, message_problem, read_tools, tools_problem
from ortholora.text.prompts import mark

OFFERED = (
    "{% if tools %}{{ 'system : ' }}{% for t in tools %}{{ t.function.name + ' ' }}{% endfor %}{{ '</s> ' }}{% endif %}"
)
THOUGHT = "{% if m.reasoning_content %}{{ '( ' + m.reasoning_content + ' ) ' }}{% endif %}"
CALLED = (
    "{% for c in m.tool_calls or [] %}{{ 'say ' + c.function.name + ' ' + c.function.arguments.of + ' ' }}{% endfor %}"
)
#: Tools first, then every message with its reasoning, its content and its calls.
TEMPLATE = (
    OFFERED
    + "{% for m in messages %}{{ m.role + ' : ' }}"
    + THOUGHT
    + "{{ m.content + ' ' }}"
    + CALLED
    + "{{ '</s> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)
TOOLS = ({"type": "function", "function": {"name": "colour"}}, {"type": "function", "function": {"name": "sound"}})


def call(name: str, of: str) -> dict[str, Any]:
    """As OpenAI's form has it: arguments as a text in JSON, and keys that hold nothing."""
    return {"id": None, "type": "function", "function": {"name": name, "arguments": json.dumps({"of": of})}}


def messages() -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "colour and sound of cow ?"},
        {"role": "assistant", "content": None, "tool_calls": [call("colour", "cow"), call("sound", "cow")]},
        {"role": "tool", "content": "white moo"},
        {"role": "assistant", "content": "moo", "reasoning_content": "white day"},
    ]


def row(*tools: Any) -> Chat:
    return Chat(tuple(map(as_message, messages())), tools)


@pytest.fixture
def tokenizer_of(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def with_template(template: str) -> Any:
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return tokenizer

    return with_template


def test_calls_and_reasoning_are_targets_and_results_are_not(tokenizer_of: Any, targets: Any) -> None:
    tokenizer = tokenizer_of(TEMPLATE)
    marked = mark(tokenizer, row(*TOOLS), 60)
    assert targets(marked) == "say colour cow say sound cow </s> <unk> white day <unk> moo </s>"
    assert tokenizer.decode(marked.ids).startswith("system : colour sound </s> user : colour and sound of cow ? </s>")
    last = mark(tokenizer, row(*TOOLS), 60, turns="last")
    assert targets(last) == "<unk> white day <unk> moo </s>"
    assert last.ids == marked.ids


def test_the_question_is_what_the_last_answer_followed(tokenizer_of: Any) -> None:
    """A user gives messages with tools; generation starts from the tokens of training."""
    tokenizer = tokenizer_of(TEMPLATE)
    asked = {"messages": messages()[:-1], "tools": list(TOOLS)}
    assert Chat.can_ask(asked)
    prompt = Chat.asking(asked).prompt_tokens(tokenizer)
    assert mark(tokenizer, row(*TOOLS), 60).ids[: len(prompt)] == prompt
    assert not Chat.can_ask({"messages": messages(), "tools": []})
    assert not Chat.can_ask({"messages": messages()[:-1], "tools": [1]})
    assert row(*TOOLS).with_answer("no").tools == TOOLS


@pytest.mark.parametrize(
    ("taken", "found"),
    [
        (OFFERED, "the row's `tools`"),
        (CALLED, "`tool_calls` of the assistant's message 2"),
        (THOUGHT, "`reasoning_content` of the assistant's message 4"),
    ],
    ids=["tools", "calls", "reasoning"],
)
def test_what_a_template_leaves_out_is_refused(tokenizer_of: Any, taken: str, found: str) -> None:
    assert taken in TEMPLATE
    tokenizer = tokenizer_of(TEMPLATE.replace(taken, ""))
    with pytest.raises(UserError, match="leaves out a part") as caught:
        mark(tokenizer, row(*TOOLS), 60)
    assert found in caught.value.found


def test_a_role_that_a_template_leaves_out_is_refused(tokenizer_of: Any) -> None:
    silent = TEMPLATE.replace("in messages %}", "in messages if m.role != 'tool' %}")
    with pytest.raises(UserError) as caught:
        mark(tokenizer_of(silent), row(), 60)
    assert "message 3 of the role 'tool'" in caught.value.found


def test_a_template_that_drops_earlier_reasoning_has_the_last_turn_to_learn(tokenizer_of: Any, targets: Any) -> None:
    """As templates of reasoning models do."""
    chat = Chat(
        (
            {"role": "user", "content": "repeat 1"},
            {"role": "assistant", "content": "1", "reasoning_content": "day"},
            {"role": "user", "content": "repeat 2"},
            {"role": "assistant", "content": "2", "reasoning_content": "it"},
        )
    )
    tokenizer = tokenizer_of(TEMPLATE.replace("if m.reasoning_content", "if m.reasoning_content and loop.last"))
    with pytest.raises(UserError, match="turns: last"):
        mark(tokenizer, chat, 60)
    assert targets(mark(tokenizer, chat, 60, turns="last")) == "<unk> it <unk> 2 </s>"


def test_arguments_are_read_and_nothing_of_them_is_lost() -> None:
    message = {"role": "assistant", "tool_calls": [call("a", "b")]}
    assert as_message(message) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "a", "arguments": {"of": "b"}}}],
    }
    odd = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "a", "arguments": "{of"}}]}
    assert as_message(odd) == odd
    null = {"role": "assistant", "content": "", "tool_calls": [{"name": "a", "arguments": {"of": None}}]}
    assert as_message(null) == null


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "assistant", "tool_calls": [{}]}, None),
        ({"role": "developer", "content": "x"}, None),
        ({"role": "assistant", "content": None, "tool_calls": []}, "NoneType"),
        ({"role": "assistant", "content": "", "tool_calls": "f()"}, "no list of calls"),
        ({"role": "user", "content": "", "tool_calls": [{}]}, "message of 'user'"),
        ({"role": 1, "content": ""}, "role is a int"),
    ],
    ids=str,
)
def test_what_is_a_message(message: Any, problem: str | None) -> None:
    found = message_problem(message)
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize("tools", [None, "", "[]", [], list(TOOLS), json.dumps(TOOLS)], ids=str)
def test_tools_in_their_forms(tools: Any) -> None:
    assert tools_problem(tools) is None
    assert read_tools(tools) == (TOOLS if (tools and len(tools) > 2) or tools == list(TOOLS) else ())


@pytest.mark.parametrize("tools", ["{", "{}", "5", [1], {"a": 1}], ids=str)
def test_what_are_no_tools(tools: Any) -> None:
    assert tools_problem(tools)
