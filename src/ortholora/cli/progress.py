"""Progress on the terminal: what is running, what is left, and an estimate."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ortholora.cli.console import insist
from ortholora.ranks.launcher import launched
from ortholora.runs.progress import Stopped
from ortholora.runs.speed import Speed

#: Seconds in which one Ctrl-C may arrive twice: from the terminal, and from the launcher, which passes it on.
_PASSED_ON = 3.0
#: Seconds between two lines about a run where there is no terminal with a bar.
_EVERY = 60.0


class TerminalProgress:
    """Shows the runs of a command.

    The estimate counts a run's work as its steps times its number of tasks, and divides what is left by
    the speed so far.
    """

    def __init__(self, console: Console) -> None:
        self.stop_requested = False
        self.console = console
        self.bars: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30 if console.width >= 130 else 10 if console.width >= 100 else 5),
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
        self._own = _Line(self)
        # Without a terminal there is no bar to redraw: say a line for every run instead.
        self.plain: bool = not console.is_terminal

    def plan(self, runs: Sequence[tuple[str, int, bool]]) -> None:
        """Show how many runs there are, and how many of them are finished."""
        finished = sum(done for _, _, done in runs)
        self._planned = {label: share for label, share, done in runs if not done}
        self._work_left = float(sum(self._planned.values()))
        self._all = self.bars.add_task("all runs", total=len(runs), completed=finished, left="")
        if finished:
            self.console.print(f"{finished} of {len(runs)} runs are finished and kept.")

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False)

    def line(self) -> _Line:
        """A bar of its own, for runs at the same time as others."""
        return _Line(self)

    def start(self, label: str, steps: int, done: int) -> None:
        """Show a new run."""
        self._own.start(label, steps, done)

    def step(self, done: int) -> None:
        """Move the bar."""
        self._own.step(done)

    def show(self, speed: Speed) -> None:
        """Say beside the bar how fast the run goes."""
        self._own.show(speed)

    def finish(self, label: str, metrics: dict[str, float]) -> None:
        """Replace the run's bar by its result."""
        self._own.finish(label, metrics)

    def work_of(self, label: str) -> int:
        """How much of the planned work a run is."""
        return self._planned.get(label, 1)

    def add_work(self, amount: float) -> None:
        """Count work as done."""
        self._work_done += amount
        if self._all is not None:
            self.bars.update(self._all, left=self.estimate())

    def drop(self, label: str) -> None:
        """Count a run as finished."""
        if self._all is not None:
            self._planned.pop(label, None)
            self.bars.update(self._all, advance=1, left=self.estimate() if self._planned else "")

    def estimate(self) -> str:
        """The time that is left, in words; nothing while too little was done."""
        work = self._work_left or 1.0
        left = work - self._work_done
        if self._work_done < 0.02 * work:
            return ""
        seconds = (time.monotonic() - self._began) / self._work_done * max(0.0, left)
        return f"about {duration(seconds)} left"

    def __enter__(self) -> TerminalProgress:
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()


class _Line:
    """The bar of one run after another."""

    def __init__(self, display: TerminalProgress) -> None:
        self._display = display
        self._bar: Any = None
        self._steps, self._at, self._work = 1, 0, 1
        self._label, self._told = "", 0.0

    def start(self, label: str, steps: int, done: int) -> None:
        """Show a new run."""
        display = self._display
        if self._bar is not None:  # of a run whose worker was lost
            display.bars.remove_task(self._bar)
        self._steps, self._at, self._work = steps, done, display.work_of(label)
        self._label, self._told = label, time.monotonic()
        self._bar = display.bars.add_task(label, total=steps, completed=done, left="")
        if done:
            display.console.print(f"{label}: going on from the checkpoint of step {done}.")
        elif display.plain:
            display.console.print(f"{label}: {steps} steps. {display.estimate()}".rstrip())

    def step(self, done: int) -> None:
        """Move the bar."""
        self._display.add_work((done - self._at) * self._work / self._steps)
        self._at = done
        self._display.bars.update(self._bar, completed=done)

    def show(self, speed: Speed) -> None:
        """Say beside the bar how fast the run goes; without a terminal a line now and then."""
        words = f"{_short(speed.rows)} rows/s, {_short(speed.tokens)} tokens/s"
        if speed.loss is not None:
            words += f", loss {speed.loss:.3g}"
        if left := self._steps - self._at:
            words += f", {duration(left * speed.seconds)} left"
        self._display.bars.update(self._bar, left=words)
        now = time.monotonic()
        if self._display.plain and left and now - self._told >= _EVERY:
            self._told = now
            line = f"{self._label}: step {self._at} of {self._steps}, {words}"
            self._display.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self, label: str, metrics: dict[str, float]) -> None:
        """Replace the run's bar by its result."""
        numbers = ", ".join(f"{task} {100 * value:.1f}" for task, value in metrics.items())
        shown = f"{label}: {numbers}" if numbers else label
        self._display.console.print(f"[green]✓[/green] {shown}", highlight=False)
        self._display.bars.remove_task(self._bar)
        self._bar = None
        self._display.drop(label)


@contextmanager
def show_progress(
    console: Console, words: str = "Stopping after this step, with a checkpoint."
) -> Iterator[TerminalProgress]:
    """Show progress; Ctrl-C (or a termination), which `words` answer, stops after the current step."""
    progress = TerminalProgress(console)
    with stoppable(progress, console, words), progress:
        yield progress


class _Asked(Protocol):
    stop_requested: bool


@contextmanager
def stoppable(progress: _Asked, console: Console, words: str) -> Iterator[None]:
    """Turn Ctrl-C and a termination into `stop_requested`, and what then stops into exit code 130.

    Args:
        progress: What the work asks whether it is to stop.
        console: Where to say so.
        words: What is said to the first of them; the second one stops at once.
    """
    again = 0.0

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        nonlocal again
        if progress.stop_requested:
            if time.monotonic() < again:
                return
            raise KeyboardInterrupt
        progress.stop_requested = True
        again = time.monotonic() + (_PASSED_ON if launched() > 1 else 0.0)
        console.print(f"{words} (Once more: stop at once.)")

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Stopped as stopped:
        insist().print(f"Stopped in {stopped}. Start the same command again to go on.")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _short(number: float) -> str:
    """Three digits of it: 87.5, 412, 10.3k."""
    if number < 1000:
        return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
    return f"{number / 1000:.3g}k" if number < 999_500 else f"{number / 1e6:.3g}M"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
