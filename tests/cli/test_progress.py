"""Bars on a terminal: one for all runs, and one for each run that goes on."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from ortholora.cli import progress as module
from ortholora.cli.progress import TerminalProgress
from ortholora.runs.speed import Speed


@pytest.fixture
def progress():
    shown = TerminalProgress(Console(file=io.StringIO(), force_terminal=True, width=120))
    shown.plan([("a", 1, False), ("b", 3, False), ("c", 1, True)])
    return shown


def bars(progress):
    return {task.description: task.completed for task in progress.bars.tasks}


def test_runs_at_once_have_a_bar_each(progress):
    one, two = progress.line(), progress.line()
    one.start("a", 10, 0)
    two.start("b", 20, 4)
    one.step(5)
    two.step(6)
    assert bars(progress) == {"all runs": 1, "a": 5, "b": 6}
    one.finish("a", {"topic": 0.5})
    assert bars(progress) == {"all runs": 2, "b": 6}
    assert "a: topic 50.0" in progress.console.file.getvalue()
    one.start("d", 10, 0)
    two.finish("b", {})
    assert bars(progress) == {"all runs": 3, "d": 0}


def test_the_estimate_counts_the_work_of_all_lines(progress, monkeypatch):
    one, two = progress.line(), progress.line()
    one.start("a", 10, 0)
    two.start("b", 10, 0)
    began = time.monotonic()
    monkeypatch.setattr(progress, "_began", began)
    monkeypatch.setattr(time, "monotonic", lambda: began + 20)
    one.step(5)
    two.step(5)  # half of 1 + 3 parts
    assert progress.estimate() == "about 20 s left"


def test_a_run_says_on_one_line_how_fast_it_goes_and_what_is_left(progress):
    progress.start("a", 100, 0)
    progress.step(40)
    progress.show(Speed(rows=412.3, tokens=10_312.0, seconds=2.0, loss=None))
    said = [task.fields["left"] for task in progress.bars.tasks if task.description == "a"]
    assert said == ["412 rows/s, 10.3k tokens/s, 2 min left"]
    progress.show(Speed(rows=4.0, tokens=1_250_000.0, seconds=0.5, loss=0.41234))
    said = [task.fields["left"] for task in progress.bars.tasks if task.description == "a"]
    assert said == ["4 rows/s, 1.25M tokens/s, loss 0.412, 30 s left"]
    progress.step(100)
    progress.show(Speed(rows=4.0, tokens=1.0, seconds=0.5, loss=0.4))
    assert "left" not in progress.bars.tasks[-1].fields["left"]


@pytest.mark.parametrize("width", [80, 110, 140])
def test_the_line_fits_the_terminal(width):
    shown = TerminalProgress(Console(file=io.StringIO(), force_terminal=True, width=width))
    shown.start("ortho · seed 0", 600, 0)
    shown.step(120)
    shown.show(Speed(rows=412.3, tokens=10_312.0, seconds=0.5, loss=0.41234))
    plain = Console(file=io.StringIO(), width=width)
    plain.print(shown.bars.get_renderable())
    (line,) = plain.file.getvalue().splitlines()
    assert "ortho · seed 0" in line
    assert "412 rows/s, 10.3k tokens/s, loss 0.412, 4 min left" in line


def test_without_a_terminal_a_line_a_minute(monkeypatch):
    shown = TerminalProgress(Console(file=io.StringIO(), width=60))
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown.start("a", 100, 0)
    for step in range(1, 100):
        now[0] += 1.5
        shown.step(step)
        shown.show(Speed(rows=8.0, tokens=80.0, seconds=1.5, loss=1.0))
    lines = [line for line in shown.console.file.getvalue().splitlines() if "rows/s" in line]
    assert lines[0] == "a: step 40 of 100, 8 rows/s, 80 tokens/s, loss 1, 90 s left".replace("90 s", "2 min")
    assert len(lines) == 2
