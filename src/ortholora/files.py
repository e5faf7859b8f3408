"""Files that are whole or absent: written beside their place, flushed to disk, then moved there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one and nothing between.

    Args:
        path: The file; its folder must exist.
        write: Called once with a binary stream to write to.
    """
    # Same folder, hence same file system: `os.replace` is atomic only there.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
