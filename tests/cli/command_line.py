"""The command line as a user meets it: typed words in, text and an exit code out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click.testing
from typer.testing import CliRunner

from ortholora.cli.app import app


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
        check_message(result.stderr)
        return result.stderr


def check_message(text: str) -> None:
    """Check that there is one message, with what was expected and found, and what to do."""
    assert text.startswith("Error: ")
    for part in ("\n  expected: ", "\n  found:    ", "\n  to do:    "):
        assert text.count(part) == 1, text
    assert "Traceback" not in text
    assert "None" not in text
