"""`conflicts.npz` in a run's folder: how conflicts and sizes changed over the training, block by block."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ortholora.errors import UserError
from ortholora.files import replace_file
from ortholora.runs.arrays import UNREADABLE, load_arrays
from ortholora.trainers.history import ConflictHistory

HISTORY_FILE = "conflicts.npz"


def write_history(folder: Path, history: ConflictHistory) -> None:
    """Write it; floats in single precision, which is more than they are known to."""
    arrays: dict[str, Any] = {
        entry.name: _stored(np.asarray(getattr(history, entry.name))) for entry in fields(ConflictHistory)
    }
    replace_file(folder / HISTORY_FILE, lambda stream: np.savez_compressed(stream, **arrays))


def read_history(folder: Path) -> ConflictHistory | None:
    """Read it; None for a run without capture, or of an earlier version.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / HISTORY_FILE
    if not path.is_file():
        return None
    try:
        found = load_arrays(path)
        arrays = {entry.name: found[entry.name] for entry in fields(ConflictHistory)}
    except UNREADABLE as error:
        raise _damaged(path, str(error) or type(error).__name__) from None
    tasks, blocks = (tuple(map(str, arrays.pop(name).tolist())) for name in ("tasks", "blocks"))
    history = ConflictHistory(tasks, blocks, **arrays)
    if problem := _misfit(history):
        raise _damaged(path, problem)
    return history


def _stored(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def _misfit(history: ConflictHistory) -> str | None:
    windows, blocks = len(history.steps), len(history.blocks) + 1
    expected = {
        "cosines": (windows, blocks, len(history.pairs)),
        "cosine_steps": (windows, blocks, len(history.pairs)),
        "lengths": (windows, blocks, len(history.tasks)),
        "length_steps": (windows, blocks, len(history.tasks)),
    }
    for name, shape in expected.items():
        if getattr(history, name).shape != shape:
            return f"`{name}` of shape {list(getattr(history, name).shape)}, for {list(shape)}"
    return None


def _damaged(path: Path, found: str) -> UserError:
    return UserError(
        f"cannot read {path}",
        expected="the conflicts of the run, as an .npz file of arrays",
        found=found,
        todo=f"delete only {path}: the report then shows the run without its conflicts, and nothing else needs it",
    )
