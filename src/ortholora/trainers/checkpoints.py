"""Checkpoints that are either whole or not there.

A checkpoint is written into a staging folder beside the others and moved into its place when it is complete, so
that a full disk or a kill in the middle leaves the previous one as the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ortholora.errors import UserError
from ortholora.files import put_back, remove_folder, stage

#: A checkpoint, or the older one of that step which a crash left aside (`files.publish_folder`).
_NAME = re.compile(r"^checkpoint-(\d+)(\.old)?$")
#: How torch words that a file could not be written; its other errors of this class are no trouble with a disk.
_WRITING = re.compile(
    r"PytorchStreamWriter|inline_container|unexpected pos|No space left|Parent directory|iostream error"
)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return [path for path in _found(folder) if path.suffix != ".old"]


def has_any(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint, be it one that `last` would have to put back; changes nothing."""
    return bool(_found(folder))


def last(folder: Path) -> Path | None:
    """Return the newest checkpoint to go on from, after putting back what a crash left aside.

    For the process that writes the folder alone: another one may be about to move its checkpoint.

    """
    for path in _found(folder):
        put_back(path.with_suffix(""))
    complete = checkpoints(folder)
    return complete[-1] if complete else None


def step_of(checkpoint: Path | None) -> int:
    """Number of optimizer steps that a checkpoint has; 0 for none."""
    match = _NAME.match(checkpoint.name) if checkpoint else None
    return int(match[1]) if match else 0


@contextmanager
def staging(folder: Path, what: str, kept_in: Path | None = None, owner: bool = True) -> Iterator[Path]:
    """Write into a folder beside, to be published from there; cleans up and explains when writing fails.

    Args:
        folder: The folder beside whose contents is written.
        what: What is saved, for the message.
        kept_in: Folder of the checkpoints, where it is another one.
        owner: Whether this process makes and removes the folder; of several, one does.

    Raises:
        UserError: The disk is full or cannot be written; names the last complete checkpoint.
    """
    try:
        with stage(folder, owner) as staged:
            yield staged
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not _WRITING.search(str(error)):
            raise  # of the run itself: another rank's death, a lost accelerator
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, RuntimeError):  # torch's words are about its own format
            reason = f"a file that could not be written to its end ({reason})"
        kept = checkpoints(kept_in or folder)
        raise UserError(
            f"{what} could not be saved in {folder}",
            expected="a disk with room that may be written to",
            found=reason,
            todo="make room and start the same command again; "
            + (f"it goes on from {kept[-1].name}" if kept else "no checkpoint was written before"),
        ) from error


def rotate(folder: Path, limit: int | None, keep: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, never the newest nor `keep` (the best)."""
    if not limit or limit < 1:
        return
    existing = checkpoints(folder)
    protected = {existing[-1].name, Path(keep).name if keep else ""} if existing else set()
    excess = len(existing) - limit
    for path in existing:
        if excess > 0 and path.name not in protected:
            with suppress(OSError):
                remove_folder(path)
            excess -= 1


def _found(folder: Path) -> list[Path]:
    """Checkpoints by step, those that were left aside among them."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.match(path.name)), key=step_of)
