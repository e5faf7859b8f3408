"""Chats for tests of rows and tokens."""

from __future__ import annotations

from ortholora.text.chat import Chat


def chat(*texts: str) -> Chat:
    """The texts, said by the user and the assistant in turn."""
    roles = ["user", "assistant"] * len(texts)
    return Chat(tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=False)))
