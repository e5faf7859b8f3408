"""Rows of language-model tasks out of a table: prompts with completions, and chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ortholora.config.tasks.chat import TOOLS
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.table import DROP, Table, check_texts, require_columns, row_numbers
from ortholora.errors import UserError, did_you_mean
from ortholora.text.chat import Chat
from ortholora.text.completion import Completion
from ortholora.text.dialogue import Dialogue
from ortholora.text.messages import as_message, message_problem, read_tools, tools_problem


def check_completions(table: Table) -> list[Completion]:
    """Check a table's columns and turn them into rows.

    Raises:
        UserError: A column is missing, there are no rows, or a prompt or a completion is empty.
    """
    require_columns(table, [("prompt", table.text[0]), ("completion", table.label)])
    prompts = check_texts(table, table.text[0], "prompt")
    completions = check_texts(table, table.label, "completion")
    return [Completion(*pair) for pair in zip(prompts, completions, strict=True)]


def check_chats(table: Table, tools: str | None = None, compared: bool = False) -> list[Chat]:
    """Check a table's column of messages, and one of tools, and turn them into rows.

    Args:
        table: The table.
        tools: The column of the tools. Default: `tools`, if there is one.
        compared: Whether answers are compared as texts: then each must have one.

    Raises:
        UserError: A column is missing, there are no rows, or one is no chat that ends with an answer.
    """
    wanted = [("messages", table.text[0])]
    require_columns(table, [("tools", tools), *wanted] if tools is not None else wanted)
    chats = table.columns[table.text[0]]
    offered = table.columns.get(tools or TOOLS, [None] * len(chats))
    problems = [
        chat_problem(chat, compared) or tools_problem(offer) for chat, offer in zip(chats, offered, strict=True)
    ]
    bad = [i for i, problem in enumerate(problems) if problem is not None]
    if bad:
        raise UserError(
            f"{table.shown}, column `{table.text[0]}`: not a chat",
            expected="a list of messages, each with a `role` and a `content` that is text (or, from the assistant, "
            "`tool_calls`), the last from the assistant",
            found=f"{problems[bad[0]]} in {row_numbers(table, bad, len(chats))}",
            todo=f"correct these rows, or point the task's `messages` to another column, {DROP}",
        )
    return [
        Chat(tuple(map(as_message, chat)), read_tools(offer))  # type: ignore[call-overload]
        for chat, offer in zip(chats, offered, strict=True)
    ]


def answer_indices(spec: TaskConfig, table: Table, rows: Sequence[Dialogue]) -> list[int]:
    """Index of every row's answer in the closed set; zeros for open answers.

    Raises:
        UserError: A row has another answer.
    """
    if spec.labels is None:
        return [0] * len(rows)
    answers = [row.answer for row in rows]
    index = {label: i for i, label in enumerate(spec.labels)}
    unknown = [i for i, answer in enumerate(answers) if answer not in index]
    if unknown:
        answer = answers[unknown[0]]
        raise UserError(
            f"{table.shown}: an answer that is not among the task's `labels`",
            expected=f"one of {', '.join(map(repr, spec.labels))}",
            found=f"{answer!r} in {row_numbers(table, [i for i in unknown if answers[i] == answer], len(rows))}",
            todo="mind spaces: `labels` are written as in the data"
            if answer.strip() in {label.strip() for label in spec.labels}
            else did_you_mean(answer, spec.labels, "correct the rows or `labels`; without `labels` answers are open"),
        )
    return [index[answer] for answer in answers]


def chat_problem(chat: Any, compared: bool = False) -> str | None:
    """What is wrong with a chat."""
    if not isinstance(chat, list) or not chat:
        return "no list" if not isinstance(chat, list) else "an empty list"
    for message in chat:
        if problem := message_problem(message):
            return problem
    if len(chat) < 2 or chat[-1]["role"] != "assistant":
        return f"a chat that ends with a message of {chat[-1]['role']!r}" if len(chat) > 1 else "a single message"
    if (chat[-1].get("content") or "").strip():
        return None
    if not chat[-1].get("tool_calls"):
        return "an empty answer"
    return (
        "an answer of `tool_calls` alone, which `labels` and metrics of texts cannot be compared with" * compared
        or None
    )
