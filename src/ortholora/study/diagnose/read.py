"""Read a diagnosis back, to write its page anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ortholora.errors import UserError
from ortholora.study.diagnose.stored import POINTS, SETTINGS_FILE
from ortholora.study.finished import read_finished

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
    return read_finished(path, _NEEDED, _AGAIN)
