"""Progress over the rows of a file: how many, how fast, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ortholora.cli.progress import stoppable

#: Seconds between two lines where there is no terminal to redraw.
_PAUSE = 30.0


class TerminalRows:
    """Shows how far a file is."""

    def __init__(self, console: Console) -> None:
        self.stop_requested = False
        self.console = console
        self.bar: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._label, self._rows, self._first = "", 0, 0
        self._began = self._said = time.monotonic()
        self._task: Any = None

    def start(self, label: str, rows: int, done: int) -> None:
        """Show the file."""
        self._label, self._rows, self._first = label, rows, done
        self._began = self._said = time.monotonic()
        self._task = self.bar.add_task(label, total=rows, completed=done, speed="")
        self.note(f"{label}: going on after row {done:,} of {rows:,}." if done else f"{label}: {rows:,} rows.")

    def step(self, done: int) -> None:
        """Move the bar; without a terminal, say a line now and then."""
        now = time.monotonic()
        speed = f"{(done - self._first) / max(now - self._began, 1e-9):,.0f} rows a second"
        self.bar.update(self._task, completed=done, speed=speed)
        if self.bar.disable and (now - self._said > _PAUSE or done == self._rows):
            self._said = now
            self.note(f"{self._label}: {done:,} of {self._rows:,} rows, {speed}.")

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_rows(console: Console, on_stop: str) -> Iterator[TerminalRows]:
    """Show progress over rows; Ctrl-C (or a termination) stops after the rows that are being worked on.

    Args:
        console: Where to.
        on_stop: What is said to somebody who stops it.
    """
    progress = TerminalRows(console)
    with stoppable(progress, console, on_stop), progress.bar:
        yield progress
