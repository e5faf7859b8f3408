"""Bounds of what is read, where there is no natural one: how long, and how many."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: Steps of a training; more than anybody trains, and few enough for every number that is made of them.
MOST_STEPS = 10_000_000
#: Most letters of a name that becomes the name of a folder and of an array.
LONGEST_NAME = 100


def ordinary(path: Path) -> Path:
    """The path, of what can be read to its end: a device may give bytes for ever, a pipe waits until somebody writes.

    Raises:
        OSError: It is a pipe or a device, or not there.
        ValueError: A NUL in the path.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return path


def read_text(path: Path, most: int, pipe: bool = False) -> str:
    """The text of a file.

    Args:
        path: The file.
        most: Most bytes that are read.
        pipe: Whether it may be a pipe, which is read to its end if somebody has it open to write.

    Raises:
        OSError: It cannot be read, is no file or is longer.
        UnicodeDecodeError: It is not UTF-8.
        ValueError: A NUL in the path.
    """
    if pipe and stat.S_ISFIFO(path.stat().st_mode):
        content = _read_pipe(path, most + 1)
    else:
        with ordinary(path).open("rb") as file:
            content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than the {most:,} bytes that are read", str(path))
    return content.decode("utf-8-sig")


def _read_pipe(path: Path, most: int) -> bytes:
    """What comes out of a pipe: opened without waiting for somebody who writes."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        try:
            first = os.read(file.fileno(), 1)
        except BlockingIOError:  # somebody will write
            first = None
        if first == b"":
            raise OSError(errno.EINVAL, "a pipe that nobody writes to", str(path))
        os.set_blocking(file.fileno(), True)
        return (first or b"") + file.read(most)
