"""Files that are whole or absent: written beside their place, flushed to disk, then moved there.

All that the program writes goes through this module, so that a kill, a full disk or a loss of power leaves the
older file (or folder), or the newer one, and never a part of one.
"""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import platform
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any

#: The folder beside its place in which something is made.
STAGING = ".saving"
#: This machine, in names of files that are being written: a process's number says nothing on another one.
_HERE = re.sub(r"[^A-Za-z0-9.]", "", platform.node())[:64]


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one and nothing between.

    Args:
        path: The file; its folder must exist.
        write: Called once with a binary stream to write to.
    """
    # Same folder, hence same file system: `os.replace` is atomic only there.
    beside = path.with_name(f".{path.name}.{_HERE}-{os.getpid()}.tmp")
    _remove_remains(path)
    try:
        with beside.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        _name(error, path)
        raise


def append_piece(path: Path, whole: int, piece: bytes) -> int:
    """Write a piece after the first `whole` bytes of a file; whatever a killed process left after them is cut off.

    Args:
        path: The file; it is made if need be.
        whole: Bytes of it that are whole, as the caller has kept it elsewhere.
        piece: What comes next. It is on the disk when this returns.

    Returns:
        Bytes that are whole now.

    Raises:
        OSError: It cannot be written; or it has lost some of its bytes, in whose place there would be zeros.
    """
    try:
        with path.open("r+b" if path.exists() else "wb") as stream:
            if (size := stream.seek(0, os.SEEK_END)) < whole:
                raise OSError(errno.EIO, f"{size:,} bytes, of {whole:,} that were written", str(path))
            stream.truncate(whole)
            stream.seek(whole)
            stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        _name(error, path)
        raise
    return whole + len(piece)


def _name(error: BaseException, path: Path) -> None:
    """Have an error of writing name the file: the system says that the disk is full, and not what for."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


def _remove_remains(path: Path) -> None:
    """Remove what killed processes of this machine left beside a file; those of other machines may be alive."""
    for remains in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(_HERE)}-*.tmp"):
        process = remains.name.rpartition("-")[2].removesuffix(".tmp")
        if process.isdecimal() and not is_alive(int(process)):
            remains.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there; where that cannot be told, that it is."""
    if os.name != "posix":  # elsewhere this signal ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        pass
    with suppress(OSError):  # Linux: one that ended, and that its parent has not asked about yet
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `replace_file` does."""
    replace_file(path, lambda stream: stream.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON, as `replace_file` does; see `plain` for what it takes."""
    replace_file(path, lambda stream: stream.write(to_json(value)))


def to_json(value: Any) -> bytes:
    """Return the value as indented UTF-8 JSON with a final newline, strictly by the standard (no NaN)."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def plain(value: Any) -> Any:
    """Return the value with dicts, lists, strings, bools, ints, finite floats and None only.

    Scalars and arrays of numpy become Python's; NaN and infinities become None.

    Raises:
        TypeError: A value of another type; the caller is to say what it means as text.
    """
    import numpy as np  # here: whoever only replaces files needs no numpy

    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not plain data: {value!r}")


@contextmanager
def stage(folder: Path, owner: bool = True) -> Iterator[Path]:
    """Make an empty folder inside of `folder` to write into, for `publish_files` or `publish_folder` to empty.

    Args:
        folder: The folder to which the result goes; it is made if need be.
        owner: Whether this process makes and removes the stage; of several, one does.
    """
    staged = folder / STAGING
    if owner:
        shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True, exist_ok=not owner)
        yield staged
    finally:
        if owner:
            shutil.rmtree(staged, ignore_errors=True)


def publish_files(staged: Path, folder: Path) -> None:
    """Move the files of a complete folder into an existing one, each in one step."""
    _share(staged)
    flush(staged)
    for path in sorted(staged.iterdir()):
        os.replace(path, folder / path.name)


def publish_folder(staged: Path, target: Path) -> None:
    """Move a complete folder into its place; an older one of the same name is replaced.

    A crash in the middle leaves the older one under another name: `put_back`.
    """
    _share(staged)
    flush(staged)
    put_back(target)
    try:
        if target.exists():
            target.rename(_aside(target))
        staged.rename(target)
    finally:
        put_back(target)


def _share(staged: Path) -> None:
    """Let read the files whoever may read their folder: safetensors makes its own for their owner alone."""
    mode = stat.S_IMODE(staged.stat().st_mode) & 0o666
    for path in staged.rglob("*"):
        if path.is_file():
            with suppress(OSError):  # not every system knows owners
                path.chmod(mode)


def put_back(target: Path) -> None:
    """Finish what `publish_folder` began: the older folder comes back, or goes if the newer one is there."""
    aside = _aside(target)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a crash in the middle leaves no part of it under its name."""
    with stage(folder.parent) as staged:
        folder.rename(staged / folder.name)


def flush(folder: Path) -> None:
    """Have a folder's files on the disk before they get their names: a loss of power must not leave empty ones."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            with suppress(OSError):  # a folder's list of names: not every system can flush one
                _flush(path)
        else:
            _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
