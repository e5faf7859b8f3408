"""Bounds of what is read, where there is no natural one: how long, and how many."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

#: Steps of a training; more than anybody trains, and few enough for every number that is made of them.
MOST_STEPS = 10_000_000
#: Most letters of a name that becomes the name of a folder and of an array.
LONGEST_NAME = 100


def read_text(path: Path, most: int) -> str:
    """The text of a file or a pipe. A device would give bytes for ever, or wait for somebody who types.

    Args:
        path: The file.
        most: Most bytes that are read.

    Raises:
        OSError: It cannot be read, is a device or is longer.
        UnicodeDecodeError: It is not UTF-8.
        ValueError: A NUL in the path.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a device, not a file", str(path))
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than the {most:,} bytes that are read", str(path))
    return content.decode("utf-8-sig")
