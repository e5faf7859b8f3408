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

from ortholora.errors import UserError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
#: Seconds after which a held lock is refused: another process may be looking whether it is free.
_PATIENCE = 1.0
#: What file systems say that have no locks (NFS without its lock service, Lustre mounted with `noflock`).
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def lock(folder: Path, of: str | None = None) -> Iterator[None]:
    """Hold a run's folder, which is made if need be, and removed again if nothing came into it.

    Args:
        folder: The folder.
        of: Name of a file in it, to hold that alone.

    The operating system drops the lock when the process ends, so that one that was killed leaves none; the file
    that may then be left is no lock.

    Raises:
        UserError: Another process holds it; the message says which.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (LOCK_FILE if of is None else f".{of}{LOCK_FILE}")
    descriptor = _take(path, folder if of is None else folder / of)
    try:
        yield
    finally:
        if descriptor is not None:
            # First the file, then the lock: whoever opened the file meanwhile sees that it is not the folder's.
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)
        if new:  # of a run that was refused nothing stays
            with suppress(OSError):
                folder.rmdir()


def check_unlocked(folder: Path) -> None:
    """Check that nobody writes the folder now.

    Raises:
        UserError: Another process does.
    """
    if (folder / LOCK_FILE).exists():
        with lock(folder):
            pass


def _take(path: Path, what: Path) -> int | None:
    """Open and lock the file; None where the system has no locks.

    Raises:
        UserError: It stays locked.
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


def _held(path: Path, what: Path) -> UserError:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        found = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        found = "a process that did not say which it is"
    return UserError(
        f"{what} is being written by another process",
        expected="one command at a time for the folder of a run, and for a file of answers",
        found=found,
        todo="wait for that one to end, or stop it, and start the same command again; or give another --out",
    )
