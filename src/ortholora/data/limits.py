"""How much of a data file is read: enough for any training set, and an end to what is hostile or no data at all.

Each limit can be raised by an environment variable, which is the same for all commands.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ortholora.errors import UserError

#: The environment variables: characters of a row, columns of a table, memory for the rows of a file.
ROW, COLUMNS, DATA = "ORTHOLORA_MAX_ROW_CHARACTERS", "ORTHOLORA_MAX_COLUMNS", "ORTHOLORA_MAX_DATA_GB"
#: The limit of data where a system does not say how much memory there is.
_UNKNOWN = 16 * 10**9
#: About how much more an object of JSON takes than its text.
_NESTED = 4


def longest_row() -> int:
    """Most characters of a row: a file without line breaks must not come into memory as one."""
    return int(_set(ROW) or 100_000_000)


def most_columns() -> int:
    """Most columns of a table."""
    return int(_set(COLUMNS) or 10_000)


def most_held() -> int:
    """Most bytes of a file's rows in memory; by default half of the memory: training needs more than the texts."""
    return int((_set(DATA) or 0) * 10**9) or _memory() // 2


def _set(name: str) -> float | None:
    """The value of an environment variable; None where it is not set."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 10**15:
        raise UserError(
            f"The environment variable {name}", expected="a number above 0", found=text, todo="correct or unset it"
        )
    return value


def _memory() -> int:
    """The memory of this machine, of its container, or of this process, whichever is least."""
    found = [_UNKNOWN]
    with suppress(AttributeError, OSError, ValueError):  # no such thing on this system
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError):  # ValueError: "max", no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(ImportError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        found += [limit] if limit != resource.RLIM_INFINITY else []
    return min(found)


def too_much(path: Path, expected: str, found: str, name: str) -> UserError:
    """The message about data beyond a limit.

    Args:
        path: The file.
        expected: What is read at most.
        found: What is more.
        name: The environment variable that raises the limit.
    """
    return UserError(
        f"{path}: more than is read",
        expected=expected,
        found=found,
        todo=f"is this the right file? If so, raise the limit with the environment variable {name}",
    )


def check_columns(path: Path, count: int) -> None:
    """Refuse a table that is too wide."""
    if count > (most := most_columns()):
        found = f"{count:,} names of columns"
        raise too_much(path, f"at most {most:,} columns", found, COLUMNS)


class Held:
    """Counts what rows take in memory, roughly, while they are read."""

    #: About what Python needs for a value besides its characters: the object, and its place in a list.
    VALUE = 64

    def __init__(self, path: Path) -> None:
        self._path, self._most, self._bytes, self._rows = path, most_held(), 0, 0

    def add(self, values: Iterable[object], text: int = 0) -> None:
        """Count a row.

        Args:
            values: Its values, as far as they are kept.
            text: Characters that it has in the file: they tell the size of a list or an object.

        Raises:
            UserError: All rows together take more than they may.
        """
        size = nested = 0
        for value in values:
            size += self.VALUE + (len(value) if isinstance(value, str) else 0)
            nested = nested or _NESTED * text * isinstance(value, (dict, list))
        self.add_bytes(size + nested, 1)

    def add_bytes(self, size: int, rows: int) -> None:
        """Count rows whose size is known."""
        self._bytes += size
        self._rows += rows
        if self._bytes > self._most:
            raise too_much(
                self._path,
                f"rows that take at most {self._most / 10**9:,.3g} GB of memory",
                f"more than that in the first {self._rows:,} rows",
                DATA,
            )
