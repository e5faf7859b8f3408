"""`push`: what is said before, while and after files go to a hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ortholora.cli.console import aside, say
from ortholora.runs.hub_files import files_to_push
from ortholora.runs.push import Pushed, Target, push


def run_push(folder: Path, target: Target) -> tuple[list[str], Pushed]:
    """Push a folder's files; return their names, and where they are."""
    files = files_to_push(folder)
    if files.note is not None:
        say(f"Note: {files.note}")
    with _bars():
        pushed = push(files, target)
    return list(files.names), pushed


@contextmanager
def _bars() -> Iterator[None]:
    """The bars of the hub's library, on a terminal alone."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not (aside().is_terminal or are_progress_bars_disabled())
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
