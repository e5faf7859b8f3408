"""Messages and tools as they stand in data, in the forms that are about: checked, and as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ortholora.errors import listing
from ortholora.text.nesting import TOO_DEEP, is_too_deep
from ortholora.text.utf8 import is_text

#: A `role`, a `content`, and what else the chat template reads.
Message = Mapping[str, Any]


def message_problem(message: Any) -> str | None:
    """What is wrong with a message; None of a good one. Who calls tools need not say anything besides."""
    if is_too_deep(message):
        return TOO_DEEP
    if isinstance(message, dict) and not is_text(json.dumps(message, ensure_ascii=False, default=str)):
        return "half of a character"
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    needed = {"role"} if calls else {"role", "content"}
    if not isinstance(message, dict) or not needed <= set(message):
        found = listing(message) if isinstance(message, dict) else type(message).__name__
        return f"a message without `role` and `content` ({found})"
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        return "`tool_calls` that are no list of calls"
    if calls and message["role"] != "assistant":
        return f"`tool_calls` in a message of {message['role']!r}"
    content = message.get("content")
    if not isinstance(content, str) and not (calls and content is None):
        return f"a message whose content is a {type(content).__name__}"
    return None if isinstance(message["role"], str) else f"a message whose role is a {type(message['role']).__name__}"


def as_message(message: Message) -> dict[str, Any]:
    """A good message as a template takes it.

    Keys that hold nothing are left out: Parquet fills the keys that some messages lack with null, and a template would
    show them. The arguments of a call, which OpenAI's form has as a text in JSON, become what the text says.
    """
    found = _without_nulls(message)
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [_call(call) for call in calls]
        found.setdefault("content", "")
    return found


def tools_problem(tools: Any) -> str | None:
    """What is wrong with the tools of a row, a list or the same in JSON; None of good ones, and of none."""
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools or []
    except (ValueError, RecursionError):
        return "tools that are no JSON"
    if is_too_deep(tools):
        return f"tools {TOO_DEEP}"
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return "tools that are no list of schemas"
    return None if is_text(json.dumps(tools, ensure_ascii=False, default=str)) else "half of a character in the tools"


def read_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """Good tools as a template takes them."""
    return tuple(json.loads(tools) if isinstance(tools, str) and tools.strip() else tools or ())


def _call(call: Message) -> dict[str, Any]:
    found = _without_nulls(call)
    if isinstance(found.get("function"), dict):
        found["function"] = _call(found["function"])
    if isinstance(arguments := found.get("arguments"), str):
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            return found
        if isinstance(read, dict):
            found["arguments"] = read
    return found


def _without_nulls(mapping: Message) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}
