"""Read a stored `.npz` file of arrays, without trusting it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

#: What reading a damaged file raises. AttributeError and TypeError: `np.load` returns a bare array for a file that is
#: one.
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file. A pickle could run code: refused, not loaded.

    Raises:
        Exception: One of `UNREADABLE`; FileNotFoundError is an OSError.
    """
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
