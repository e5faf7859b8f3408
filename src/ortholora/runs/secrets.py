"""Texts of others without what nobody may read over a shoulder, or find in a log."""

from __future__ import annotations

import re
from urllib.parse import quote

_HIDDEN = "***"
#: What the hub's tokens look like, wherever they came from; a password in an address; the signature of an upload.
_SECRETS = (
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{16,}"), _HIDDEN),
    (re.compile(r"//[^/@\s]+@"), f"//{_HIDDEN}@"),
    (re.compile(r"(https?://[^\s?'\"]+\?)[^\s'\"]+"), rf"\1{_HIDDEN}"),
)


def without_secrets(text: str, token: str | None) -> str:
    """A text with asterisks in place of a token, as it is or as an address holds it, and of all that looks like one.

    Args:
        text: The text.
        token: The token that is in use.
    """
    for form in {token, quote(token, safe="")} if token else ():
        text = text.replace(form, _HIDDEN)
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
