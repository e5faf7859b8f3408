"""Processes that work off a list together. Knows nothing of studies, and imports no torch.

They are spawned, not forked (torch's threads and CUDA do not survive a fork), and are given one item after another.
All that is said goes through a pipe for each: a process that is killed closes its own and disturbs no other.
`worker.py` is the other end of the pipe.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from ortholora.errors import UserError
from ortholora.study.jobs.worker import SIGNALS, Work, serve

if TYPE_CHECKING:
    from ortholora.runs.progress import Progress, RunProgress

#: Seconds between two looks whether the user asked to stop.
_LOOK = 0.2
#: Seconds for a process that has nothing left to do to end.
_END = 30.0


def work_off(
    items: Mapping[int, str],
    prepare: Callable[[], Work],
    environments: Sequence[Mapping[str, str]],
    progress: Progress,
) -> list[str]:
    """Do all items, each in one of the worker processes.

    A failure, or `progress.stop_requested`, asks every worker to stop (with a checkpoint, where the work is a run).

    Args:
        items: What to do, in this order: number → label for people.
        prepare: Called once in every worker; what it returns does an item. Must be picklable.
        environments: Environment variables to start each worker with; so many workers there are.
        progress: Is told what happens, and may ask to stop.

    Returns:
        Labels of the items that were not finished because of a request to stop; empty if all are done.

    Raises:
        UserError: The first failure, under the name of its item: a mistake of the user's, or a process that died.
        RuntimeError: A worker failed over anything else, with its traceback.
    """
    pool = _Pool(items, pickle.dumps(prepare), progress)
    try:
        for environment in environments[: len(items)]:
            pool.workers.append(_Worker(environment, progress.line()))
        pool.run()
    except BaseException:
        for worker in pool.workers:
            worker.process.kill()
        raise
    finally:
        for worker in pool.workers:
            worker.end()
    if pool.failure is not None:
        raise pool.failure
    return pool.left


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, environment: Mapping[str, str], line: RunProgress) -> None:
        context = get_context("spawn")
        self.line = line
        self.item: int | None = None
        self.asked_to_stop = False
        self.connection, other = context.Pipe()
        # No daemon: a run may have data loader processes of its own.
        self.process = context.Process(target=serve, args=(other,))
        with _environment(environment), _blocked_signals():
            self.process.start()
        other.close()  # or its end would never be seen

    def prepare(self, payload: bytes) -> None:
        with suppress(OSError):  # it died: that is heard, too
            self.connection.send_bytes(payload)

    def give(self, item: int) -> None:
        self.item = item
        with suppress(OSError):
            self.connection.send(item)

    def ask_to_stop(self) -> None:
        if self.item is None and not self.connection.closed:
            self.process.kill()  # it is loading libraries or data, and has nothing to save
            self.dismiss()
        elif not self.asked_to_stop:
            self.asked_to_stop = True
            with suppress(OSError):
                self.connection.send(None)

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


class _Pool:
    """The workers, what is waiting for them, and what came of it."""

    def __init__(self, items: Mapping[int, str], payload: bytes, progress: Progress) -> None:
        self.workers: list[_Worker] = []
        self.left: list[str] = []
        self.failure: Exception | None = None
        self._items, self._waiting = items, deque(items)
        self._payload, self._progress = payload, progress

    def run(self) -> None:
        while busy := {worker.connection: worker for worker in self.workers if not worker.connection.closed}:
            for connection in wait(list(busy), timeout=_LOOK):
                self._hear(busy[connection])  # type: ignore[index]
            if self._stopping:
                for worker in busy.values():
                    worker.ask_to_stop()
        self.left += [self._items[item] for item in self._waiting]

    @property
    def _stopping(self) -> bool:
        return self._progress.stop_requested or self.failure is not None

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, *rest = worker.connection.recv()
        except (EOFError, OSError):
            return self._died(worker)
        if kind == "hello" and not self._stopping:
            worker.prepare(self._payload)
        elif kind == "idle" and self._waiting and not self._stopping:
            worker.give(self._waiting.popleft())
        elif kind in ("hello", "idle", "end"):
            worker.dismiss()
        elif kind == "stopped":
            self.left.append(self._label(worker))
            worker.dismiss()
        elif kind == "failed":
            self._failed(worker, rest[0])
        elif kind == "crashed":
            self.failure = self.failure or RuntimeError(f"{self._label(worker)} failed in its process:\n\n{rest[0]}")
            worker.dismiss()
        else:
            getattr(worker.line, kind)(*rest)
        return None

    def _label(self, worker: _Worker) -> str:
        return "The start of a worker process" if worker.item is None else self._items[worker.item]

    def _failed(self, worker: _Worker, error: UserError) -> None:
        """Put the run's name before what is wrong."""
        self.failure = self.failure or type(error)(
            f"{self._label(worker)}: {error.what}",
            expected=error.expected,
            found=error.found,
            todo=f"{error.todo} (other runs were stopped with a checkpoint; finished ones are kept)",
        )
        worker.dismiss()

    def _died(self, worker: _Worker) -> None:
        worker.process.join(_END)
        code = worker.process.exitcode
        how = f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit code {code}"
        self._failed(
            worker,
            UserError(
                "its process ended before the run did",
                expected="a process that lives until its run is finished",
                found=how,
                todo="if memory ran out, use fewer --jobs; start the same command again to go on",
            ),
        )


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
