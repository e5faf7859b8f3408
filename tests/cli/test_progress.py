"""Bars on a terminal: one for all runs, and one for each run that goes on."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from ortholora.cli.progress import TerminalProgress


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
