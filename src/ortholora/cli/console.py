"""The terminal: where something is said, and what is refused."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from ortholora.cli.processes import ending, of_another
from ortholora.cli.voice import voice
from ortholora.errors import LostProcessError, UserError, file_error
from ortholora.ranks.board import may_speak
from ortholora.ranks.launcher import check_alone, index, launched

console: Console = Console()
errors: Console = Console(stderr=True)
_nobody = Console(quiet=True)


def people() -> Console:
    """Where people are told what goes on: standard output; with `--json` standard error, with `--quiet` nowhere."""
    return _nobody if voice.quiet else errors if voice.as_json else console


def aside() -> Console:
    """Where is said what nobody keeps (somebody is waited for): standard error, with `--quiet` nowhere."""
    return _nobody if voice.quiet else errors


def insist() -> Console:
    """Where is said what `--quiet` does not hide: why there is no result."""
    return console if voice.to_people else errors


def say(text: str) -> None:
    """Print a line that is not wrapped: a path in it can be copied."""
    people().print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def user_errors(processes: str = "one") -> Iterator[None]:
    """Show a user's mistake as one message and exit with 2; a wanted stop exits with 130.

    Args:
        processes: `several`, where a launcher may start more than one for the command; else that is refused.
    """
    # PEFT imports it where it is installed, and on a CPU it complains of a kernel that is not needed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if launched() == 1:
        with _shown():
            yield
        return
    console.quiet = errors.quiet = index() > 0
    # DDP's advice about unused parameters, from every process: a micro-batch need not have rows of every task.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with ending(), _shown(), of_another():
        if processes == "one":
            check_alone(next((word for word in sys.argv[1:] if not word.startswith("-")), "ortholora"))
        if index() > 0:  # the first has the same to say
            warnings.filterwarnings("ignore")
            logging.disable(logging.WARNING)
        yield


@contextmanager
def _shown() -> Iterator[None]:
    try:
        yield
    except LostProcessError as error:
        raise _refused(error, 1) from None
    except UserError as error:
        raise _refused(error) from None
    except BrokenPipeError:
        raise  # `| head`: Typer ends without a word
    except OSError as error:
        raise _refused(file_error(error)) from None
    except KeyboardInterrupt:
        _tell("Stopped. Start the same command again: it goes on from whatever was kept.")
        raise typer.Exit(130) from None


def refuse(error: UserError) -> None:
    """Show a user's mistake."""
    _tell(f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Show a warning that decides the exit code."""
    _tell(f"[bold yellow]Warning:[/bold yellow] {escape(text)}", highlight=False, soft_wrap=True)


def _refused(error: UserError, code: int = 2) -> typer.Exit:
    refuse(error)
    return typer.Exit(code)


def _tell(text: str, **style: Any) -> None:
    """Print to standard error; of several processes one does."""
    if may_speak():
        errors.quiet = False
        errors.print(text, **style)
