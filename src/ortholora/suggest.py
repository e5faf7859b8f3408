"""The nearest known word, for messages about unknown keys, columns, labels and files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that is spelled most like `word`, or `None` when nothing is close."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, options: Iterable[str], otherwise: str) -> str:
    """Return "did you mean `x`?" for the nearest option, or `otherwise` when nothing is close."""
    option = nearest(word, options)
    return f"did you mean `{option}`?" if option else otherwise


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Return names in backticks, comma separated, cut after `limit`."""
    names = list(names)
    shown = ", ".join(f"`{name}`" for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"
