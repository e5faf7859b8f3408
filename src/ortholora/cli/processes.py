"""The end of a command that a launcher started in several processes: told once, and the same for all."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def of_another() -> Iterator[None]:
    """Tell what was another process's end from what is a mistake of this one.

    Raises:
        LostProcessError: Another process is gone; the message says which.
        Exit: Another process says itself why it ended, or this one's error is not for a user and was shown.
    """
    from ortholora.errors import UserError
    from ortholora.ranks import board
    from ortholora.ranks.together import FailedElsewhere

    try:
        yield
    except (UserError, OSError, typer.Exit):
        raise
    except FailedElsewhere:
        raise typer.Exit(1) from None
    except Exception as error:
        _ignore_signals()  # the launcher ends the others where one is gone: first it is said which
        why = board.why_lost(error)
        if isinstance(why, int):
            raise typer.Exit(why) from None
        if why is not None:
            raise why from None
        # Here, because the process may have to leave without the interpreter's farewell.
        sys.excepthook(type(error), error, error.__traceback__)
        raise typer.Exit(1) from None


@contextmanager
def ending() -> Iterator[None]:
    """Go together: tell the others how this process ends, wait for them, and leave the group.

    Where one of them cannot come, the process leaves at once: whatever waits in a collective would wait for ever.
    """
    from ortholora.ranks import board, together

    code = 1
    try:
        yield
        code = 0
    except typer.Exit as left:
        code = left.exit_code
        raise
    finally:
        _ignore_signals()  # this process is as good as gone, and its exit code is the others'
        # After a loss nobody can come: not waited for.
        if board.end(code, wait=code != 1):
            together.part()
        else:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
