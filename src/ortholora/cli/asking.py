"""Questions at the terminal, and their likeliest answers where nobody is to be asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.prompt import Prompt

from ortholora.cli.console import console, say
from ortholora.cli.voice import voice
from ortholora.errors import UserError

if TYPE_CHECKING:
    from ortholora.data.guess.draft import Question


def asker(yes: bool) -> Callable[[Question], str]:
    """What answers questions: the user, or with `yes` the guesses, each of which is said.

    Raises:
        UserError: When asked: nobody sits at the terminal, and there is no `yes`.
    """

    def guessed(question: Question) -> str:
        say(f"{_about(question)}{question.words} Taken: {question.guess}")
        return question.guess

    def asked(question: Question) -> str:
        if nobody := _nobody_there():
            raise UserError(
                f"{_about(question)}{question.words}",
                expected="an answer: " + (" or ".join(question.choices) or "any text"),
                found=nobody,
                todo=f"--yes takes the likeliest answers (here {question.guess}), which you can change in the file",
            )
        words, choices = escape(f"{_about(question)}{question.words}"), list(question.choices) or None
        return Prompt.ask(words, console=console, choices=choices, default=question.guess)

    return guessed if yes else asked


def _nobody_there() -> str | None:
    """Why nobody can be asked; None: somebody can."""
    if not voice.to_people:
        return "--quiet or --json, with which nothing is asked"
    return None if _at_a_terminal() else "no terminal to ask at"


def _at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _about(question: Question) -> str:
    return f"{question.task}: " if question.task else ""
