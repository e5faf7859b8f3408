"""What a worker process does: items that its parent names, until there are no more. `processes.py` is the
parent's end.

Messages to the parent: `hello` (ready for the work itself, pickled), `idle` (the last item is done, if there was
one), what a run reports, and at the end one of `end`, `stopped`, `failed` and `crashed`. From the parent: the
number of an item, or None: stop at the next step.
"""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ortholora.errors import UserError, file_error

if TYPE_CHECKING:
    from ortholora.runs.speed import Speed

#: Does one item and reports to a `Relay`; returns whether it was finished, not stopped on request.
Work = Callable[[int, "Relay"], bool]
#: What is said: a word, and what belongs to it.
Message = tuple[Any, ...]
#: What a terminal or a scheduler sends to all processes of a command; the parent alone acts on the first.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Prepared:
    """Work that is opened only after `set_up`: its pickle imports torch and libraries that may have something to say.

    Attributes:
        set_up: Is called first; a function of a module that imports little.
        work: The pickle of what is called then, and returns the work.
    """

    set_up: Callable[[], None] | None
    work: bytes

    def __call__(self) -> Work:
        """Get ready, in the worker."""
        if self.set_up is not None:
            self.set_up()
        opened: Callable[[], Work] = pickle.loads(self.work)
        return opened()


class Relay:
    """Passes on what a run reports, and learns at every step whether to stop."""

    def __init__(self, connection: Connection) -> None:
        self.stop_requested: bool = False
        self._connection = connection

    def plan(self, runs: Sequence[tuple[str, int, bool]]) -> None:
        """Do nothing: the parent has the plan."""

    def note(self, text: str) -> None:
        """Do nothing: the parent has said it."""

    def line(self) -> Relay:
        """Return itself: one run at a time."""
        return self

    def start(self, label: str, steps: int, done: int) -> None:
        """Pass it on."""
        self._tell("start", label, steps, done)

    def step(self, done: int) -> None:
        """Pass it on, and look for a request to stop."""
        self._tell("step", done)
        with suppress(OSError):
            if self._connection.poll():
                self.stop_requested = True

    def show(self, speed: Speed) -> None:
        """Pass it on."""
        self._tell("show", speed)

    def finish(self, label: str, metrics: dict[str, float]) -> None:
        """Pass it on."""
        self._tell("finish", label, metrics)

    def _tell(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:  # the parent is gone: save what there is
            self.stop_requested = True


def serve(connection: Connection) -> None:
    """Be a worker: `work_off` starts this in a process of its own."""
    relay = Relay(connection)
    # Ctrl-C reaches every process of the terminal; the parent asks its workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: setattr(relay, "stop_requested", True))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with suppress(EOFError, OSError):  # a closed connection: there is nothing more to do
        connection.send(("hello",))
        payload = connection.recv_bytes()
        connection.send(_outcome(payload, relay, connection))


def _outcome(payload: bytes, relay: Relay, connection: Connection) -> Message:
    """Do items until there are no more; return what is to be said at the end."""

    def do() -> Message:
        work = pickle.loads(payload)()
        while not relay.stop_requested:
            item = _next(connection)
            if item is None:
                break
            if not work(item, relay):
                return ("stopped",)
        return ("end",)

    return told(do)


def told(do: Callable[[], Message]) -> Message:
    """What a worker says after something, also where that failed: `failed` or `crashed`."""
    try:
        return do()
    except UserError as error:
        return ("failed", error)
    except OSError as error:
        return ("failed", file_error(error))
    except BaseException:
        return ("crashed", traceback.format_exc())


def _next(connection: Connection) -> int | None:
    """Ask for the next item; None when there is none."""
    try:
        connection.send(("idle",))
        return connection.recv()
    except (EOFError, OSError):
        return None
