"""Rows of language-model tasks out of a table: prompts with completions, and chats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.table import DROP, Table, check_texts, require_columns, row_numbers
from ortholora.errors import UserError, did_you_mean, listing
from ortholora.files import is_text
from ortholora.text.chat import Chat
from ortholora.text.completion import Completion
from ortholora.text.dialogue import Dialogue


def check_completions(table: Table) -> list[Completion]:
    """Check a table's columns and turn them into rows.

    Raises:
        UserError: A column is missing, there are no rows, or a prompt or a completion is empty.
    """
    require_columns(table, [("prompt", table.text[0]), ("completion", table.label)])
    prompts = check_texts(table, table.text[0], "prompt")
    completions = check_texts(table, table.label, "completion")
    return [Completion(*pair) for pair in zip(prompts, completions, strict=True)]


def check_chats(table: Table) -> list[Chat]:
    """Check a table's column of messages and turn it into rows.

    Raises:
        UserError: The column is missing, there are no rows, or one is no chat that ends with an answer.
    """
    require_columns(table, [("messages", table.text[0])])
    chats = table.columns[table.text[0]]
    problems = [chat_problem(chat) for chat in chats]
    bad = [i for i, problem in enumerate(problems) if problem is not None]
    if bad:
        raise UserError(
            f"{table.shown}, column `{table.text[0]}`: not a chat",
            expected="a list of messages, each with a `role` and a `content` that is text, the last from the assistant",
            found=f"{problems[bad[0]]} in {row_numbers(table, bad, len(chats))}",
            todo=f"correct these rows, or point the task's `messages` to another column, {DROP}",
        )
    return [Chat(tuple(map(_without_nulls, chat))) for chat in chats]  # type: ignore[call-overload]


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


def chat_problem(chat: Any) -> str | None:
    """What is wrong with a chat."""
    if not isinstance(chat, list) or not chat:
        return "no list" if not isinstance(chat, list) else "an empty list"
    for message in chat:
        if isinstance(message, dict) and not is_text(json.dumps(message, ensure_ascii=False, default=str)):
            return "half of a character"
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            found = listing(message) if isinstance(message, dict) else type(message).__name__
            return f"a message without `role` and `content` ({found})"
        if not isinstance(message["content"], str) or not isinstance(message["role"], str):
            return f"a message whose content is a {type(message['content']).__name__}"
    if len(chat) < 2 or chat[-1]["role"] != "assistant":
        return f"a chat that ends with a message of {chat[-1]['role']!r}" if len(chat) > 1 else "a single message"
    return None if chat[-1]["content"].strip() else "an empty answer"


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """Parquet fills the keys that some messages lack with null; a template would show them."""
    return {key: value for key, value in message.items() if value is not None}
