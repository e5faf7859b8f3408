"""A home with backbone, data and configuration for every test, and one finished run for all."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import IO, Any

import pytest
from command_line import Cli

import forked
from tiny import tiny_config

#: A user's own rules, as a file in the folder the user starts from.
RULES = """
import torch

def thirds(gram, context):
    return torch.full(gram.shape[:2], 1 / 3)

def broken(gram, context):
    return torch.full(gram.shape[:2], float("nan"))
"""


@pytest.fixture(scope="session")
def home_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with backbone, data, `tiny.yaml` and `my_rules.py`; not to be changed."""
    home = tmp_path_factory.mktemp("home")
    tiny_config(home)
    (home / "my_rules.py").write_text(textwrap.dedent(RULES), encoding="utf-8")
    return home


@pytest.fixture(scope="session")
def trained(home_of_all: Path) -> Path:
    """A finished run of `train`; not to be changed."""
    out = home_of_all / "trained"
    Cli(home_of_all).ok("train", home_of_all / "tiny.yaml", "--out", out)
    return out


@pytest.fixture(autouse=True)
def home(home_of_all: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, for this test to spoil, as the working directory."""
    for path in home_of_all.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    (tmp_path / "backbone").symlink_to(home_of_all / "backbone")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture(autouse=True)
def _pictures_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report has ten, which take longer than a tiny training.

    The studies of fixtures for a whole file have real ones, and `tests/study` looks at them.
    """

    def savefig(self: object, stream: IO[Any], format: str, metadata: object = None) -> None:
        stream.write(b"\x89PNG" if format == "png" else '<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture
def forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of `--jobs` are forked from a server and not spawned, which takes seconds for each."""
    monkeypatch.setattr("ortholora.study.jobs.processes.get_context", lambda method: forked.context())


@pytest.fixture
def cli(home: Path) -> Cli:
    return Cli(home)


@pytest.fixture
def run(trained: Path, home: Path) -> Path:
    """A copy of the finished run, for this test to spoil."""
    return Path(shutil.copytree(trained, home / "trained"))
