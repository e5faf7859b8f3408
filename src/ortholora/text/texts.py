"""Rows of an encoder's task: one text, or a pair."""

from __future__ import annotations


class Texts(tuple[str, ...]):
    """The texts of a row: one, or a pair."""

    __slots__ = ()

    def serialised(self) -> list[str]:
        """The row as texts, for digests."""
        return list(self)
