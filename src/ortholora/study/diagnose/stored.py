"""The points of a diagnosis that are finished, so that it can be stopped and started again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ortholora.errors import UserError
from ortholora.files import replace_file, write_json
from ortholora.runs.arrays import UNREADABLE, load_arrays

#: In a diagnosis's folder: the folder of its points; in that one: what decides them.
POINTS, SETTINGS_FILE = "points", "settings.json"
#: Changes when what is stored means something else.
FORMAT = 1


class Points:
    """What was measured at the points of each training, one file a point.

    Args:
        folder: The folder of the points; it is made.
        fingerprint: Of all that decides them.

    Raises:
        UserError: The folder holds points of other settings or other data.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / SETTINGS_FILE
        mark = {"format": FORMAT, "fingerprint": fingerprint}
        if path.is_file() and _read(path) != mark:
            raise UserError(
                f"{folder.parent} holds a diagnosis with other settings or other data",
                expected="an empty folder, or one that this very diagnosis was started in before",
                found=f"another fingerprint in {path}",
                todo="give another --out, or delete the folder",
            )
        write_json(path, mark)

    def has(self, training: int, step: int) -> bool:
        """Whether a point is finished."""
        return self.load(training, step) is not None

    def load(self, training: int, step: int) -> dict[str, np.ndarray] | None:
        """The arrays of a point; None where there is none, or a damaged one, which is measured anew."""
        try:
            return load_arrays(self._path(training, step))
        except UNREADABLE:
            return None

    def save(self, training: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a point."""
        values: dict[str, np.ndarray] = dict(arrays)
        replace_file(self._path(training, step), lambda stream: np.savez_compressed(stream, **values))  # type: ignore[arg-type]

    def _path(self, training: int, step: int) -> Path:
        # By number: a task may have any name.
        return self.folder / f"{'jointly' if training < 0 else f'alone-{training}'}-{step}.npz"


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None
