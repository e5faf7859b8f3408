"""The other end of `ray_workers.py`: a worker in a Ray cluster. Imports neither torch nor Ray.

It is an actor with two threads: one does what there is to do, one answers meanwhile. Ray carries every argument and
every answer in pickles of its own.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortholora.errors import LockedError, UserError
from ortholora.runs.provenance import VERSION
from ortholora.study.jobs.worker import Message, Relay, Work, told

#: Seconds for a file to be seen on another machine: network file systems remember for a while what was not there.
_SEEN = 30.0
#: Seconds for the lock of a run to come free whose worker was lost: that one may outlive its node for a moment.
_LOCKED = 60.0

#: Of these the newest says all.
_NEWEST = ("step", "show")

#: What was told meanwhile, and what is said at the end.
Answer = tuple[list[Message], Message]


@dataclass(frozen=True)
class Place:
    """Where the command was started, so that its workers stand in the same place.

    Attributes:
        folder: Its working directory.
        path: Where it looks for modules of the user's own.
        environment: Environment variables for the worker.
        mark: A file that was just made in the folder of the study.
        version: The version of this package.
    """

    folder: str
    path: tuple[str, ...]
    environment: dict[str, str]
    mark: Path
    version: str = VERSION

    def enter(self) -> None:
        """Stand there.

        Raises:
            UserError: This machine has another version, or another folder of that name.
        """
        node = socket.gethostname()
        if self.version != VERSION:
            raise UserError(
                f"The node {node} has another version of ortholora",
                expected=self.version,
                found=VERSION,
                todo="install the same version on every node of the cluster",
            )
        os.environ.update(self.environment)
        with suppress(OSError):  # needed only where something in it is
            os.chdir(self.folder)
        sys.path += [entry for entry in self.path if entry not in sys.path]
        _wait_for(self.mark, node)


def _wait_for(mark: Path, node: str) -> None:
    give_up = time.monotonic() + _SEEN
    while not mark.exists():
        if time.monotonic() > give_up:
            raise UserError(
                f"The node {node} does not see the folder of the study",
                expected=f"the same {mark.parent} on every node of the cluster: results are written there",
                found="no such folder, or another one",
                todo="give an --out on a file system that all nodes share, under the same path",
            )
        time.sleep(0.2)


class Actor:
    """A worker; each of its methods but the last two is called when the one before has answered."""

    def __init__(self) -> None:
        self._relay = _Kept()
        self._work: Work | None = None

    def begin(self, place: Place) -> Answer:
        """Get ready for the work itself, whose pickle brings torch."""

        def do() -> Message:
            place.enter()
            return ("hello",)

        return self._answer(do)

    def prepare(self, prepare: Callable[[], Work]) -> Answer:
        """Get ready for items."""

        def do() -> Message:
            self._work = prepare()
            return ("idle",)

        return self._answer(do)

    def do(self, item: int) -> Answer:
        """Do an item."""
        assert self._work is not None
        work, give_up = self._work, time.monotonic() + _LOCKED

        def do() -> Message:
            while not self._relay.stop_requested:
                try:
                    return ("idle",) if work(item, self._relay) else ("stopped",)
                except LockedError:
                    if time.monotonic() > give_up:
                        raise
                    time.sleep(1.0)
            return ("stopped",)

        return self._answer(do)

    def _answer(self, do: Callable[[], Message]) -> Answer:
        last = told(do)
        return self._relay.take(), last

    def take(self) -> list[Message]:
        """What was told since the last time."""
        return self._relay.take()

    def stop(self) -> None:
        """Stop at the next step."""
        self._relay.stop_requested = True


class _Kept(Relay):
    """Keeps what is told until somebody asks for it."""

    def __init__(self) -> None:
        self.stop_requested = False
        self._node = os.getppid()  # its process on this machine
        self._told: list[Message] = []
        self._lock = threading.Lock()

    def step(self, done: int) -> None:
        self._tell("step", done)
        if os.getppid() != self._node:
            # Ray lets a worker outlive its node until the work is done. Its run is another one's by now: save what
            # there is, and leave the folder.
            self.stop_requested = True

    def _tell(self, *message: Any) -> None:
        with self._lock:
            if message[0] in _NEWEST:
                self._forget(message[0])
            self._told.append(message)

    def _forget(self, kind: str) -> None:
        """Forget what is not new any more, of the run that is going on."""
        for place in range(len(self._told) - 1, -1, -1):
            if self._told[place][0] == kind:
                del self._told[place]
                return
            if self._told[place][0] not in _NEWEST:
                return

    def take(self) -> list[Message]:
        with self._lock:
            taken, self._told = self._told, []
        return taken
