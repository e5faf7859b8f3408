"""Progress on the terminal: what is running, what is left, and an estimate."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ortholora.training.progress import Stopped


class TerminalProgress:
    """Shows the runs of a command.

    The estimate counts a run's work as its steps times its number of tasks, and divides what is left by
    the speed so far.
    """

    def __init__(self, console: Console) -> None:
        self.stop_requested = False
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._planned: dict[str, int] = {}
        self._work_left = 0.0
        self._work_done = 0.0
        self._began = time.monotonic()
        self._all: Any = None
        self._current: Any = None
        self._steps, self._at, self._share = 1, 0, 1
        # Without a terminal there is no bar to redraw: say a line for every run instead.
        self._plain = not console.is_terminal

    def plan(self, runs: Sequence[tuple[str, int, bool]]) -> None:
        """Show how many runs there are, and how many of them are finished."""
        finished = sum(done for _, _, done in runs)
        self._planned = {label: share for label, share, done in runs if not done}
        self._work_left = float(sum(self._planned.values()))
        self._all = self._bars.add_task("all runs", total=len(runs), completed=finished, left="")
        if finished:
            self._console.print(f"{finished} of {len(runs)} runs are finished and kept.")

    def start(self, label: str, steps: int, done: int) -> None:
        """Show a new run."""
        self._steps, self._at, self._share = steps, done, self._planned.get(label, 1)
        self._current = self._bars.add_task(label, total=steps, completed=done, left="")
        if done:
            self._console.print(f"{label}: going on from the checkpoint of step {done}.")
        elif self._plain:
            self._console.print(f"{label}: {steps} steps. {self._estimate()}".rstrip())

    def step(self, done: int) -> None:
        """Move the bar."""
        self._work_done += (done - self._at) * self._share / self._steps
        self._at = done
        left = self._estimate()
        self._bars.update(self._current, completed=done, left=left if self._all is None else "")
        if self._all is not None:
            self._bars.update(self._all, left=left)

    def finish(self, label: str, metrics: dict[str, float]) -> None:
        """Replace the run's bar by its result."""
        numbers = ", ".join(f"{task} {100 * value:.1f}" for task, value in metrics.items())
        self._console.print(f"[green]✓[/green] {label}: {numbers}", highlight=False)
        self._bars.remove_task(self._current)
        if self._all is not None:
            self._planned.pop(label, None)
            self._bars.update(self._all, advance=1, left=self._estimate() if self._planned else "")

    def _estimate(self) -> str:
        left = (self._work_left or self._share) - self._work_done
        if self._work_done < 0.02 * (self._work_left or self._share):
            return ""
        seconds = (time.monotonic() - self._began) / self._work_done * max(0.0, left)
        return f"about {_duration(seconds)} left"

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


@contextmanager
def show_progress(console: Console) -> Iterator[TerminalProgress]:
    """Show progress; Ctrl-C (or a termination) stops after the current step, with a checkpoint."""
    progress = TerminalProgress(console)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        if progress.stop_requested:
            raise KeyboardInterrupt
        progress.stop_requested = True
        console.print("Stopping after this step, with a checkpoint. (Once more: stop at once.)")

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with progress:
            yield progress
    except Stopped as stopped:
        console.print(f"Stopped in {stopped}. Start the same command again to go on.")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
