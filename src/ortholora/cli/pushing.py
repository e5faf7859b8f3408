"""`push`: what is said before, while and after files go to a hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ortholora.cli.console import errors, say
from ortholora.runs.hub_files import files_to_push
from ortholora.runs.push import Target, push


def run_push(folder: Path, target: Target) -> None:
    """Push a folder's files, and say where they are."""
    files = files_to_push(folder)
    if files.note is not None:
        say(f"Note: {files.note}")
    with _bars():
        pushed = push(files, target)
    say(f"Pushed {', '.join(files.names)} to {pushed.repo}: {pushed.url}")


@contextmanager
def _bars() -> Iterator[None]:
    """The bars of the hub's library, on a terminal alone."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not (errors.is_terminal or are_progress_bars_disabled())
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
