"""Worker processes on this machine: the parent's end. `worker.py` is the other one.

They are spawned, not forked (torch's threads and CUDA do not survive a fork), and are given one item after another.
All that is said goes through a pipe for each: a process that is killed closes its own and disturbs no other.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any

from ortholora.errors import UserError
from ortholora.study.jobs.pool import Prepare
from ortholora.study.jobs.worker import SIGNALS, Message, serve

if TYPE_CHECKING:
    from ortholora.runs.progress import RunProgress

#: Seconds for a process that has nothing left to do to end.
_END = 30.0


class Processes:
    """Workers for `work_off`: processes of this machine.

    Args:
        environments: Environment variables to start each worker with; so many workers there are.
    """

    patience = 0

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        self.size: int = len(environments)
        self._free, self._payload = list(environments), b""

    def bring(self, prepare: Prepare) -> None:
        """Pickle the work once for all."""
        self._payload = pickle.dumps(prepare)

    def hire(self, line: RunProgress) -> _Worker:
        """Start a process."""
        return _Worker(self._free.pop(0), self._payload, line)

    def listen(self, workers: Sequence[_Worker], seconds: float) -> Iterator[tuple[_Worker, Message]]:
        """What some of them say, one message each at most."""
        by_pipe = {worker.connection: worker for worker in workers}
        for connection in wait(list(by_pipe), timeout=seconds):
            worker = by_pipe[connection]  # type: ignore[index]
            yield worker, worker.hear()

    def end(self, workers: Sequence[_Worker], at_once: bool) -> None:
        """Wait until all are gone; `at_once`: kill them first."""
        for worker in workers if at_once else ():
            worker.process.kill()
        for worker in workers:
            worker.end()


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, environment: Mapping[str, str], payload: bytes, line: RunProgress) -> None:
        context = get_context("spawn")
        self.line: RunProgress = line
        self._payload = payload
        self.item: int | None = None
        self.asked_to_stop: bool = False
        self.connection: Connection[Any, Any]
        self.connection, other = context.Pipe()
        # No daemon: a run may have data loader processes of its own.
        self.process: SpawnProcess = context.Process(target=serve, args=(other,))
        with _environment(environment), _blocked_signals():
            self.process.start()
        other.close()  # or its end would never be seen

    @property
    def gone(self) -> bool:
        return self.connection.closed

    def prepare(self) -> None:
        with suppress(OSError):  # it died: that is heard, too
            self.connection.send_bytes(self._payload)

    def give(self, item: int) -> None:
        self.item = item
        with suppress(OSError):
            self.connection.send(item)

    def ask_to_stop(self) -> None:
        if self.item is None and not self.gone:
            self.process.kill()  # it is loading libraries or data, and has nothing to save
            self.dismiss()
        elif not self.asked_to_stop:
            self.asked_to_stop = True
            with suppress(OSError):
                self.connection.send(None)

    def hear(self) -> Message:
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return ("died", self._loss())
        return message

    def _loss(self) -> UserError:
        self.process.join(_END)
        code = self.process.exitcode
        how = f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit code {code}"
        return UserError(
            "its process ended before the run did",
            expected="a process that lives until its run is finished",
            found=how,
            todo="if memory ran out, use fewer --jobs; start the same command again to go on",
        )

    def dismiss(self) -> None:
        """Have nothing more to do with it: without a connection it ends."""
        self.item = None
        self.connection.close()

    def end(self) -> None:
        self.connection.close()
        self.process.join(_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that a process started here inherits: CUDA reads them before any of our code runs."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Have a process start deaf: a Ctrl-C must not end it with a traceback before it knows what to do with one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
