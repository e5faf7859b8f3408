"""One mutated input, and the verdict on what the program did with it."""

from __future__ import annotations

import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ortholora.errors import UserError

#: Seconds of computing after which an input hangs the program, and of waiting (on a loaded machine).
COMPUTING, WAITING = 10.0, 180.0


@dataclass(frozen=True)
class Case:
    """A mutated input.

    Attributes:
        what: What was done, to find it again.
        run: Gives it to the program; a refusal is a `UserError` or an `OSError`, which the command line explains.
        nonsense: Whether nothing but a refusal is right.
    """

    what: str
    run: Callable[[], object]
    nonsense: bool = False


#: Makes cases without end out of a generator.
Source = Callable[[random.Random], Case]


class Hang(BaseException):
    """The input took too long."""


def judge(case: Case) -> str | None:
    """What is wrong with the program's answer; None where nothing is."""
    try:
        with _limited():
            case.run()
    except UserError as error:
        return _message_problem(error)
    except OSError:
        return None
    except Hang:
        return "hang"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"traceback: {type(error).__name__}: {str(error)[:200]!r} in {where.filename}:{where.lineno}"
    return "accepted nonsense" if case.nonsense else None


def _message_problem(error: UserError) -> str | None:
    parts = (error.what, error.expected, error.found, error.todo)
    if not all(part.strip() for part in parts):
        return f"a message with an empty part: {error}"
    if len(str(error)) > 15_000 or not str(error).replace("\n", "").isprintable():
        return f"a message that no terminal shows: {str(error)[:500]!r}"
    return None


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, COMPUTING)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def flip(draw: random.Random, content: bytes) -> tuple[str, bytes]:
    """Damage bytes: cut, change, insert, repeat or remove some."""
    at = draw.randrange(len(content) + 1)
    length = draw.choice([1, 2, 8, 64, 512])
    how = draw.choice(["cut", "change", "insert", "repeat", "remove", "empty"])
    middle = {
        "change": bytes(draw.randrange(256) for _ in content[at : at + length]),
        "insert": bytes(draw.choice(b'\0\t\n"{[,\xff\xed\xa0\x80:-') for _ in range(length))
        + content[at : at + length],
        "repeat": content[at : at + length] * 2,
        "remove": b"",
    }
    if how in middle:
        return f"{how} {length} at {at}", content[:at] + middle[how] + content[at + length :]
    return (f"cut at {at}", content[:at]) if how == "cut" else ("empty", b"")


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in plain data, branches and leaves."""
    if above:
        yield above
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from paths(entry, (*above, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The data with another value in a place; `...` removes it."""
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[key] = put(copy[key], tuple(rest), new)
    elif new is ...:
        del copy[key]
    else:
        copy[key] = new
    return copy
