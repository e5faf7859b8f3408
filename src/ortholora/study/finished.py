"""Read the JSON file that a study or a diagnosis writes at its end: whole, with all that a page needs, or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ortholora.errors import UserError


def read_finished(path: Path, needed: Sequence[str], todo: str, form: tuple[str, int] | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        needed: Keys that a page cannot do without; the file has more, and an older one has less of that.
        todo: What to do about a damaged file.
        form: What the file is, and the number under its key `format`. It is looked at before the keys: another format
            may have others. None: files of this kind have no number.

    Raises:
        UserError: It is no whole JSON file, of another format, or lacks a key.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise _unreadable(path, "a whole JSON file", str(error), todo) from None
    content: dict[str, Any] = found if isinstance(found, dict) else {}
    if form is not None and content.get("format") != form[1]:
        what = f"format {content.get('format')!r}" if isinstance(found, dict) else type(found).__name__
        raise _unreadable(path, f"{form[0]}, format {form[1]}", what, todo)
    if lacking := [key for key in needed if key not in content]:
        raise _unreadable(path, f"key `{lacking[0]}`", "no such key", todo)
    return content


def _unreadable(path: Path, expected: str, found: str, todo: str) -> UserError:
    return UserError(f"cannot read {path}", expected=expected, found=found, todo=todo)
