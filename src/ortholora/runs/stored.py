"""What is wrong with a stored JSON file, in words: pydantic holds the file to the types of our own definition."""

from __future__ import annotations

from pydantic import ValidationError


def problem_of(error: ValidationError) -> tuple[str, str]:
    """Say what the first problem of a file is.

    Returns:
        What was expected, and what was found instead.
    """
    details = error.errors(include_url=False)[0]
    key, kind = ".".join(map(str, details["loc"])), details["type"]
    if kind == "json_invalid":
        return "a whole JSON file", str(details["msg"])
    if not key:
        return "a JSON object", type(details["input"]).__name__
    if kind == "missing":
        return f"key `{key}`", "no such key"
    found = repr(details["input"])
    return f"key `{key}`: {details['msg'].removeprefix('Input should be ')}", found if len(found) < 80 else found[
        :77
    ] + "..."
