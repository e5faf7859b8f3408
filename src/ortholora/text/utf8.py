"""Text that UTF-8 can hold."""

from __future__ import annotations

import re

# Halves of characters: what Python makes of bytes that are not UTF-8, and JSON of "\\ud800".
_HALVES = re.compile(r"[\ud800-\udfff]")


def is_text(text: str) -> bool:
    """Whether a text can be written in UTF-8."""
    return text.isascii() or not _HALVES.search(text)
