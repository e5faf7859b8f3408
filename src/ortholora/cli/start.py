"""Where the command starts: the app, or the word that it is not installed."""

from __future__ import annotations

import io
import sys

from ortholora.errors import missing_extra


def main() -> None:
    """Start the command line, or say how to install it."""
    try:
        from ortholora.cli.app import app
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("ortholora"):
            raise
        extra = "demo" if sys.argv[1:2] == ["demo"] else "cli"  # which brings the command line with it
        sys.exit(str(missing_extra("The ortholora command", extra, error)))
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter is no reason to lose the rest
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
