"""One process for a run's folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ortholora.errors import LockedError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
#: Seconds after which a held lock is refused: another process may be looking whether it is free.
_PATIENCE = 1.0
#: What file systems say that have no locks (NFS without its lock service, Lustre mounted with `noflock`).
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Held(NamedTuple):
    """A lock that is held.

    Attributes:
        path: Its file.
        descriptor: That file, opened and locked; None where the system has no locks.
    """

    path: Path
    descriptor: int | None

    @property
    def is_of_another(self) -> bool:
        """Whether the file of this name is another one: somebody removed the folder, and made it anew."""
        return self.descriptor is not None and self.path.exists() and not _is(self.path, self.descriptor)


@contextmanager
def lock(folder: Path, of: str | None = None, what: Path | None = None) -> Iterator[Held]:
    """Hold a run's folder, which is made if need be, and removed again if nothing came into it.

    Args:
        folder: The folder.
        of: Name of a file in it, to hold that alone.
        what: What is held, for messages; default: the folder, or that file.

    The operating system drops the lock when the process ends, so that one that was killed leaves none; the file
    that may then be left is no lock.

    Raises:
        LockedError: Another process holds it; the message says which.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (LOCK_FILE if of is None else f".{of}{LOCK_FILE}")
    held = Held(path, _take(path, what or (folder if of is None else folder / of)))
    try:
        yield held
    finally:
        if held.descriptor is not None:
            # First the file, then the lock: whoever opened the file meanwhile sees that it is not the folder's.
            with suppress(OSError):
                if not held.is_of_another:
                    path.unlink()
            os.close(held.descriptor)
        with suppress(OSError):
            for path in new:  # of a run that was refused nothing stays
                path.rmdir()


def check_unlocked(folder: Path) -> None:
    """Check that nobody writes the folder now.

    Raises:
        LockedError: Another process does.
    """
    if (folder / LOCK_FILE).exists():
        with lock(folder):
            pass


def _take(path: Path, what: Path) -> int | None:
    """Open and lock the file; None where the system has no locks.

    Raises:
        LockedError: It stays locked.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > give_up:
                raise _held(path, what) from None
            time.sleep(0.05)
            continue
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                "This file system has no locks: do not start a second command on the same --out.", stacklevel=2
            )
            return None
        if _is(path, descriptor):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)  # its holder removed it between our opening and our locking


def _lock(descriptor: int) -> None:
    if fcntl is None:  # pragma: no cover - Windows
        raise OSError(errno.ENOSYS, "no fcntl")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Say who holds the lock, for the message that refuses others; a full disk does not matter."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _held(path: Path, what: Path) -> LockedError:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        found = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        found = "a process that did not say which it is"
    return LockedError(
        f"{what} is being written by another process",
        expected="one command at a time for the folder of a run or of a study, and for a file of answers",
        found=found,
        todo="wait for that one to end, or stop it, and start the same command again; or give another --out",
    )
