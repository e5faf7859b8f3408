"""What every command has in common: it speaks as it is asked to, and its mistakes are messages.

A command returns its `Outcome` and prints nothing of it. So all have `--quiet` and `--json`, and none can forget them.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any

import typer

from ortholora.cli.console import user_errors
from ortholora.cli.voice import speaking
from ortholora.ranks.launcher import index

QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors and what a script goes on with.")
]
#: Help of `--json`.
_JSON = "Print the result as one JSON document; progress goes to standard error, with --quiet nowhere."


@dataclass(frozen=True)
class Outcome:
    """What a command has to tell at its end, in each of the three ways.

    Attributes:
        show: Shows it to people.
        lines: What a script goes on with, for `--quiet`: the paths that were made, or the figures or answers.
        document: Gives it as plain data, for `--json`.
        code: The exit code.
        one_a_line: Whether `document` gives several objects, each of which is a line of JSON.
    """

    show: Callable[[], None]
    lines: Sequence[str]
    document: Callable[[], Any]
    code: int = 0
    one_a_line: bool = False


Do = Callable[..., Outcome]


def command(app: typer.Typer, processes: str = "one", json_help: str = _JSON) -> Callable[[Do], Callable[..., None]]:
    """Make a function a command of `app`, with `--quiet` and `--json` after its own options.

    Args:
        app: The command line.
        processes: See `user_errors`.
        json_help: The help of `--json`.
    """

    def register(do: Do) -> Callable[..., None]:
        @user_errors(processes)
        def called(*, quiet: bool, as_json: bool, **words: Any) -> None:
            with speaking(quiet, as_json):
                outcome = do(**words)
                document = outcome.document() if as_json and index() == 0 else None
            if index() == 0:
                _tell(outcome, document, quiet, as_json)
            if outcome.code:
                raise typer.Exit(outcome.code)

        own = inspect.signature(do, eval_str=True).parameters.values()
        called.__name__, called.__doc__ = do.__name__, do.__doc__
        called.__signature__ = inspect.Signature([*own, *_options(json_help)])  # type: ignore[attr-defined]
        app.command()(called)
        return called

    return register


def _options(json_help: str) -> list[inspect.Parameter]:
    as_json = Annotated[bool, typer.Option("--json", help=json_help)]
    kinds = {"quiet": QuietOption, "as_json": as_json}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in kinds.items()]


def _tell(outcome: Outcome, document: Any, quiet: bool, as_json: bool) -> None:
    if as_json:
        for part in document if outcome.one_a_line else [document]:
            print(_in_json(part, None if outcome.one_a_line else 2))
    elif quiet:
        for line in outcome.lines:
            print(line)
    else:
        outcome.show()


def _in_json(value: Any, indent: int | None) -> str:
    """JSON that every reader takes: null for NaN; and escapes where standard output could not write a letter."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    strict = json.loads(json.dumps(value, default=_as_plain), parse_constant=lambda name: None)
    return json.dumps(strict, indent=indent, ensure_ascii=not is_unicode, allow_nan=False)


def _as_plain(value: Any) -> Any:
    """A path as text, and a number or an array of NumPy as Python's."""
    return str(value) if isinstance(value, PurePath) else value.tolist()
