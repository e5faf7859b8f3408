"""The command line as a user meets it: typed words in, text and an exit code out."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import click.testing
import pytest
from tiny import tiny_config
from typer.testing import CliRunner

from ortholora.cli import app

#: A user's own rules, as a file in the folder the user starts from.
RULES = """
import torch

def thirds(gram, context):
    return torch.full(gram.shape[:2], 1 / 3)

def broken(gram, context):
    return torch.full(gram.shape[:2], float("nan"))
"""


class Cli:
    """Runs commands in this process, in `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: Any, **options: Any) -> click.testing.Result:
        result = CliRunner().invoke(app, [str(word) for word in words], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback in the user's face
        return result

    def ok(self, *words: Any, **options: Any) -> str:
        """Run a command that must succeed.

        Returns:
            What it printed on standard output.
        """
        result = self(*words, **options)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    def complaint(self, *words: Any, **options: Any) -> str:
        """Run a command that must be refused with one message in three parts and exit code 2.

        Returns:
            The message.
        """
        result = self(*words, **options)
        assert result.exit_code == 2, result.output
        open("/tmp/w/messages.txt", "a").write(" ".join(map(str, words)) + "\n" + result.stderr + "\n")
        check_message(result.stderr)
        return result.stderr


def check_message(text: str) -> None:
    """Check that there is one message, with what was expected and found, and what to do."""
    assert text.startswith("Error: ")
    for part in ("\n  expected: ", "\n  found:    ", "\n  to do:    "):
        assert text.count(part) == 1, text
    assert "Traceback" not in text
    assert "None" not in text


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


@pytest.fixture
def cli(home: Path) -> Cli:
    return Cli(home)


@pytest.fixture
def run(trained: Path, home: Path) -> Path:
    """A copy of the finished run, for this test to spoil."""
    return Path(shutil.copytree(trained, home / "trained"))
