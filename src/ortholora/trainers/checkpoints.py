"""Checkpoints that are either whole or not there.

A checkpoint is written into a staging folder beside the others and renamed when it is complete, so that a
full disk or a kill in the middle leaves the previous one as the last.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ortholora.errors import UserError

STAGING = ".saving"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def check(checkpoint: Path) -> None:
    """Check that no file of a checkpoint is cut off, before anybody fails over it.

    Raises:
        UserError: One is.
    """
    for path in sorted(checkpoint.iterdir()):
        # What `torch.save` writes is a zip archive, whose directory is its end.
        whole = zipfile.is_zipfile(path) if path.suffix in {".pt", ".pth"} else path.stat().st_size > 0
        if not whole:
            raise UserError(
                f"The checkpoint {checkpoint} cannot be resumed",
                expected="complete files",
                found=f"{path.name}, cut off after {path.stat().st_size} bytes",
                todo=f"delete {checkpoint} and start the same command again",
            )


@contextmanager
def staging(folder: Path, what: str, kept_in: Path | None = None, owner: bool = True) -> Iterator[Path]:
    """Write into a folder beside, for `publish` to move; cleans up and explains when writing fails.

    Args:
        folder: The folder beside whose contents is written.
        what: What is saved, for the message.
        kept_in: Folder of the checkpoints, where it is another one.
        owner: Whether this process makes and removes the folder; of several, one does.

    Raises:
        UserError: The disk is full or cannot be written; names the last complete checkpoint.
    """
    stage = folder / STAGING
    if owner:
        shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir(parents=True, exist_ok=not owner)
        yield stage
    except (OSError, RuntimeError, SafetensorError) as error:
        kept = checkpoints(kept_in or folder)
        raise UserError(
            f"{what} could not be saved in {folder}",
            expected="a disk with room that may be written to",
            found=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
            todo="make room and start the same command again; "
            + (f"it goes on from {kept[-1].name}" if kept else "no checkpoint was written before"),
        ) from error
    finally:
        if owner:
            shutil.rmtree(stage, ignore_errors=True)


def publish(staged: Path, target: Path) -> None:
    """Move a complete folder into its place; an older one of the same name is replaced."""
    _flush(staged)
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staged.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def publish_files(staged: Path, target: Path) -> None:
    """Move the files of a complete folder into an existing one, each in one step."""
    _flush(staged)
    for path in sorted(staged.iterdir()):
        os.replace(path, target / path.name)


def _flush(folder: Path) -> None:
    """Have the files on the disk before they get their names: a power loss must not leave empty ones."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def rotate(folder: Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, never the newest nor `keep` (the best)."""
    if not limit or limit < 1:
        return
    existing = checkpoints(folder)
    protected = {existing[-1].name, Path(keep).name if keep else ""} if existing else set()
    excess = len(existing) - limit
    for path in existing:
        if excess > 0 and path.name not in protected:
            shutil.rmtree(path, ignore_errors=True)
            excess -= 1
