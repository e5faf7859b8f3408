"""Whether a chat template writes all that a chat has: what it passes over in silence would never be learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ortholora.errors import TemplateError, UserError

#: What a message of the assistant's may have beside its content, in the names that templates use.
PARTS = ("tool_calls", "reasoning_content", "reasoning", "thinking")
#: Roles that every template of chats knows.
_PLAIN = {"system", "user", "assistant"}

#: Messages and tools → the text that the template makes of them.
Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Any]], str]


def check_written(
    render: Render, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], targets: Iterable[int]
) -> None:
    """Leave each thing out, and see whether the text changes.

    Args:
        render: Writes messages out.
        messages: A chat.
        tools: Its tools.
        targets: Indices of the messages that are learned from.

    Raises:
        UserError: The template writes something not at all.
    """
    if tools and render(messages, ()) == render(messages, tools):
        raise _left_out("the row's `tools`")
    for i in targets:
        for part in PARTS:
            if messages[i].get(part):
                without = {key: value for key, value in messages[i].items() if key != part}
                if render([*messages[:i], without], tools) == render(messages[: i + 1], tools):
                    raise _left_out(f"`{part}` of the assistant's message {i + 1}")
    for i, message in enumerate(messages):
        if message["role"] not in _PLAIN and _is_silent(render, messages, tools, i):
            raise _left_out(f"message {i + 1} of the role {message['role']!r}")


def _is_silent(render: Render, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], index: int) -> bool:
    try:
        return render([*messages[:index], *messages[index + 1 :]], tools) == render(messages, tools)
    except UserError:  # the others alone are no chat that it takes
        return False


def _left_out(found: str) -> TemplateError:
    return TemplateError(
        "The chat template leaves out a part of the chat",
        expected="a chat template that writes out all that is to be learned",
        found=f"nothing of {found} in its text",
        todo="use a backbone whose template has tools, reasoning and these roles; or take them out of the rows, or put "
        "them into `content`",
    )
