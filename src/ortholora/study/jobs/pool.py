"""Who does what next of a list that workers do together. Knows nothing of studies, nor of where the workers are.

`processes.py` has workers on this machine, `ray_workers.py` those of a Ray cluster.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ortholora.errors import UserError
from ortholora.study.jobs.worker import Message, Work

if TYPE_CHECKING:
    from ortholora.runs.progress import Progress, RunProgress

#: Seconds between two looks whether the user asked to stop.
_LOOK = 0.2
#: Seconds without any worker after which that is said, where one may have to wait for room.
_QUIET = 60.0

#: Called once in every worker; what it returns does an item.
Prepare = Callable[[], Work]


class Worker(Protocol):
    """A worker, as the command sees it: it does one item at a time."""

    line: RunProgress
    #: What it is doing.
    item: int | None

    @property
    def gone(self) -> bool:
        """Whether nothing more is to be heard of it."""

    def prepare(self) -> None:
        """Have it get ready for items; an answer to `hello`."""

    def give(self, item: int) -> None:
        """Have it do an item; an answer to `idle`."""

    def ask_to_stop(self) -> None:
        """Have it stop at the next step, with a checkpoint; at once if it does nothing."""

    def dismiss(self) -> None:
        """Have nothing more to do with it."""


class Workers(Protocol):
    """Where workers come from.

    They say what `worker.py` lists; and `died`, with the reason, is said for one that is lost.

    Attributes:
        size: The most workers at once.
        patience: How often a lost worker is replaced for the same item.
    """

    size: int
    patience: int

    def bring(self, prepare: Prepare) -> None:
        """Take the work for all workers; it must be picklable."""

    def hire(self, line: RunProgress) -> Any:
        """Start a `Worker`; it says `hello` when it is there."""

    def listen(self, workers: Sequence[Any], seconds: float) -> Iterable[tuple[Any, Message]]:
        """What these workers say; wait for it so long at most."""

    def end(self, workers: Sequence[Any], at_once: bool) -> None:
        """Let all of them go; `at_once`: also those that are doing something."""


def work_off(items: Mapping[int, str], prepare: Prepare, workers: Workers, progress: Progress) -> list[str]:
    """Do all items, each by one of the workers.

    A failure, or `progress.stop_requested`, asks every worker to stop (with a checkpoint, where the work is a run).

    Args:
        items: What to do, in this order: number → label for people.
        prepare: Called once in every worker; what it returns does an item. Must be picklable.
        workers: Where workers come from.
        progress: Is told what happens, and may ask to stop.

    Returns:
        Labels of the items that were not finished because of a request to stop; empty if all are done.

    Raises:
        UserError: The first failure, under the name of its item: a mistake of the user's, or a worker that was lost.
        RuntimeError: A worker failed over anything else, with its traceback.
    """
    if not items:
        return []
    pool = _Pool(items, workers, progress)
    at_once = True
    try:
        workers.bring(prepare)
        for _ in range(min(workers.size, len(items))):
            pool.hire(progress.line())
        pool.run()
        at_once = False
    finally:
        workers.end(pool.workers, at_once)
    if pool.failure is not None:
        raise pool.failure
    return pool.left


class _Pool:
    """The workers, what is waiting for them, and what came of it."""

    def __init__(self, items: Mapping[int, str], source: Workers, progress: Progress) -> None:
        self.workers: list[Worker] = []
        self.left: list[str] = []
        self.failure: Exception | None = None
        self._items, self._waiting = items, deque(items)
        self._source, self._progress = source, progress
        self._losses: Counter[int | None] = Counter()
        self._heard = time.monotonic()

    def hire(self, line: RunProgress) -> None:
        self.workers.append(self._source.hire(line))

    def run(self) -> None:
        while there := [worker for worker in self.workers if not worker.gone]:
            for worker, message in self._source.listen(there, _LOOK):
                self._hear(worker, message)
            for worker in there:
                # One that is not ready yet has nothing to wait for where others have taken all that there was.
                if self._stopping or (worker.item is None and not self._waiting):
                    worker.ask_to_stop()
            self._say_if_quiet()
        self.left += [self._items[item] for item in self._waiting]

    @property
    def _stopping(self) -> bool:
        return self._progress.stop_requested or self.failure is not None

    def _hear(self, worker: Worker, message: Message) -> None:
        kind, *rest = message
        self._heard = time.monotonic()
        if kind == "hello" and not self._stopping:
            worker.prepare()
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
        elif kind == "died":
            self._lost(worker, rest[0])
        else:
            getattr(worker.line, kind)(*rest)

    def _label(self, worker: Worker) -> str:
        return "The start of a worker process" if worker.item is None else self._items[worker.item]

    def _failed(self, worker: Worker, error: UserError) -> None:
        """Put the run's name before what is wrong."""
        self.failure = self.failure or type(error)(
            f"{self._label(worker)}: {error.what}",
            expected=error.expected,
            found=error.found,
            todo=f"{error.todo} (other runs were stopped with a checkpoint; finished ones are kept)",
        )
        worker.dismiss()

    def _lost(self, worker: Worker, error: UserError) -> None:
        """Have another worker do what a lost one was doing; a few times."""
        item, label = worker.item, self._label(worker)
        self._losses[item] += 1
        if self._losses[item] > self._source.patience:
            return self._failed(worker, error)
        worker.dismiss()
        if item is not None:
            self._waiting.appendleft(item)
        if not self._stopping:
            self._progress.note(f"{label}: its worker was lost, another one goes on. ({error.found})")
            self.hire(worker.line)
        return None

    def _say_if_quiet(self) -> None:
        busy = any(worker.item is not None for worker in self.workers)
        if self._source.patience and self._waiting and not busy and time.monotonic() - self._heard > _QUIET:
            self._heard = time.monotonic()
            self._progress.note("Nothing is being done: waiting for a worker to start. (Ctrl-C stops.)")
