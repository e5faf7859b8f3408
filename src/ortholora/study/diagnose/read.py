"""Read a diagnosis back, to write its page anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ortholora.errors import UserError
from ortholora.study.diagnose.stored import POINTS, SETTINGS_FILE

JSON_FILE = "diagnosis.json"
#: What a page cannot do without.
_NEEDED = (
    "tasks",
    "settings",
    "points",
    "pace",
    "transfer",
    "grouping",
    "headline",
    "verdict",
    "next",
    "again",
    "provenance",
)
_AGAIN = "start the same `diagnose` command again: finished points are kept"


def is_diagnosis(folder: Path) -> bool:
    """Whether a folder holds a diagnosis, finished or not."""
    return (folder / JSON_FILE).is_file() or (folder / POINTS / SETTINGS_FILE).is_file()


def read_diagnosis(folder: Path) -> dict[str, Any]:
    """Read all figures of a diagnosis; what is not determined is None.

    Raises:
        UserError: It is not finished, or its file is damaged.
    """
    path = folder / JSON_FILE
    if not path.is_file():
        raise UserError(
            f"The diagnosis in {folder} is not finished",
            expected=f"{JSON_FILE}, which is written at its end",
            found="finished points alone",
            todo=_AGAIN,
        )
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, "a whole JSON file", str(error)) from None
    lacking = [key for key in _NEEDED if not isinstance(found, dict) or key not in found]
    if lacking:
        raise _damaged(path, f"key `{lacking[0]}`", "no such key")
    return dict(found)


def _damaged(path: Path, expected: str, found: str) -> UserError:
    return UserError(f"cannot read {path}", expected=expected, found=found, todo=_AGAIN)
