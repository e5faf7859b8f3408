"""The terminal: what is said, what is refused, and what is kept quiet."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from ortholora.errors import UserError, file_error

console = Console()
errors = Console(stderr=True)


def say(text: str) -> None:
    """Print a line that is not wrapped: a path in it can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def quiet() -> None:
    """Turn off the chatter of the libraries; what matters is said here or raised."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("accelerate", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def user_errors() -> Iterator[None]:
    """Show a user's mistake as one message and exit with 2; a wanted stop exits with 130."""
    # PEFT imports it where it is installed, and on a CPU it complains of a kernel that is not needed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        raise _refused(error) from None
    except BrokenPipeError:
        raise  # `| head`: Typer ends without a word
    except OSError as error:
        raise _refused(file_error(error)) from None
    except KeyboardInterrupt:
        errors.print("Stopped. Start the same command again to go on from the last checkpoint.")
        raise typer.Exit(130) from None


def _refused(error: UserError) -> typer.Exit:
    errors.print(f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
    return typer.Exit(2)
