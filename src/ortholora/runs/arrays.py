"""Read a stored `.npz` file of arrays, without trusting it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ortholora.config.bounds import ordinary

#: What reading a damaged file raises: errors of zip, zlib, struct, tokenize and numpy, wherever it fails.
UNREADABLE = Exception


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file. A pickle could run code: refused, not loaded.

    Raises:
        Exception: `UNREADABLE`; a FileNotFoundError where there is no file.
    """
    with np.load(ordinary(path), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
