"""Texts → token ids. Used for training and for prediction, so that both cut alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encode(tokenizer: Any, rows: Sequence[tuple[str, ...]], max_length: int) -> dict[str, list[list[int]]]:
    """Tokenise rows of one text or of pairs, without padding; longer rows are cut at `max_length` tokens.

    Returns:
        The tokenizer's keys (`input_ids`, `attention_mask`, …), one list of ints a row.
    """
    first = [row[0] for row in rows]
    second = [row[1] for row in rows] if rows and len(rows[0]) == 2 else None
    return dict(tokenizer(first, second, truncation=True, max_length=max_length))


def count_cut(tokenizer: Any, rows: Sequence[tuple[str, ...]], lengths: Sequence[int], max_length: int) -> int:
    """Number of rows that `encode` cut, of those that came out `lengths` long."""
    full = [row for row, length in zip(rows, lengths, strict=True) if length == max_length]
    return sum(len(ids) > max_length for ids in encode(tokenizer, full, 10**9)["input_ids"]) if full else 0


def plain_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without those that start or end one."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def special_tokens(tokenizer: Any) -> set[int]:
    """Tokens that no text is made of."""
    return {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
