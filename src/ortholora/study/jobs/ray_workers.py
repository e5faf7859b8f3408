"""Workers in a Ray cluster, as the command sees them. `ray_actor.py` is what runs there.

Ray finds room, starts processes and says when one is lost. What is done next is decided in `pool.py`, as for the
processes of `--jobs`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortholora.errors import UserError
from ortholora.files import write_text
from ortholora.study.jobs.pool import Prepare
from ortholora.study.jobs.ray_actor import Actor, Place
from ortholora.study.jobs.sharing import THREADS
from ortholora.study.jobs.worker import Message

if TYPE_CHECKING:
    from ortholora.runs.progress import RunProgress

#: A worker's last words that it did not hear itself.
_NEWS = 5.0


@dataclass(frozen=True)
class Resources:
    """What one run takes of the cluster.

    Attributes:
        cpus: CPU cores; also the threads of the run.
        gpus: GPUs, or a part of one; None: one if the cluster has any.
    """

    cpus: int = 1
    gpus: float | None = None


class RayWorkers:
    """Workers for `work_off`: actors in the cluster that this process is connected with."""

    #: A run may take its node down with it (memory): not again and again.
    patience = 3

    def __init__(self, ray: Any, each: Resources, size: int, nodes: int, out: Path) -> None:
        self.size = size
        self._ray, self._each, self._nodes = ray, each, nodes
        self._mark = out.resolve() / f".ray-{secrets.token_hex(8)}"
        self._work: Any = None

    def __str__(self) -> str:
        """Say in one sentence what is used."""
        gpus = f" and {self._each.gpus:g} GPU" if self._each.gpus else ""
        nodes = f"{self._nodes} node{'' if self._nodes == 1 else 's'}"
        cpus = f"{self._each.cpus} CPU{'' if self._each.cpus == 1 else 's'}"
        times = "" if self.size == 1 else ": step times are no measure of cost"
        return f"On a Ray cluster of {nodes}: {self.size} at once, {cpus}{gpus} each{times}."

    def bring(self, prepare: Prepare) -> None:
        """Put the work where every node can get it, and a mark into the study's folder."""
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._mark, "This file is here while workers look whether they see this folder.\n")
        self._work = self._ray.put(prepare)

    def hire(self, line: RunProgress) -> _RayWorker:
        """Ask for an actor; it starts when there is room."""
        options = {"num_cpus": self._each.cpus, "num_gpus": self._each.gpus or 0, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(Actor).options(max_restarts=0, max_concurrency=2, **options).remote()
        here = os.getcwd()
        path = (here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
        # As with --jobs: what the user set for all, or the worker's cores.
        threads = {THREADS: os.environ.get(THREADS) or str(self._each.cpus)}
        return _RayWorker(self._ray, actor, Place(here, path, threads, self._mark), self._work, line)

    def listen(self, workers: Sequence[_RayWorker], seconds: float) -> Iterator[tuple[_RayWorker, Message]]:
        """What the workers told, and answered."""
        try:
            ready, _ = self._ray.wait([worker.answer for worker in workers], timeout=seconds)
        except ConnectionError as error:
            raise UserError(
                "The connection with the Ray cluster is lost",
                expected="a cluster that lives until the study is done",
                found=str(error).partition("\n")[0],
                todo="start the same command again: finished runs are kept, others go on from their last checkpoint",
            ) from error
        for worker in workers:
            for message in worker.hear(worker.answer in ready):
                yield worker, message

    def end(self, workers: Sequence[_RayWorker], at_once: bool) -> None:
        """Give all room back."""
        for worker in workers:
            worker.dismiss()
        self._mark.unlink(missing_ok=True)


class _RayWorker:
    """One actor, as the command sees it."""

    def __init__(self, ray: Any, actor: Any, place: Place, work: Any, line: RunProgress) -> None:
        self.line: RunProgress = line
        self.gone: bool = False
        self.item: int | None = None
        self._ray, self._actor, self._work = ray, actor, work
        self._asked_to_stop = False
        #: What it was asked to do last, and what it was asked to tell meanwhile.
        self.answer: Any = actor.begin.remote(place)
        self._news: Any = None

    def prepare(self) -> None:
        self.answer = self._actor.prepare.remote(self._work)

    def give(self, item: int) -> None:
        self.item = item
        self.answer = self._actor.do.remote(item)

    def ask_to_stop(self) -> None:
        if self.item is None:
            self.dismiss()
        elif not self._asked_to_stop:
            self._asked_to_stop = True
            self._actor.stop.remote()

    def dismiss(self) -> None:
        if not self.gone:
            self.item, self.gone = None, True
            with suppress(Exception):  # it may be dead, or the cluster gone
                self._ray.kill(self._actor)

    def hear(self, ready: bool) -> list[Message]:
        """What it told since the last time; if its answer is `ready`, that too, and last."""
        messages: list[Message] = []
        if self._news is not None and (ready or self._ray.wait([self._news], timeout=0)[0]):
            with suppress(self._ray.exceptions.RayError):  # then the answer says it
                messages += self._ray.get(self._news, timeout=_NEWS)
            self._news = None
        if ready:
            told, last = self._answered()
            return [*messages, *told, last]
        if self.item is not None and self._news is None:
            self._news = self._actor.take.remote()
        return messages

    def _answered(self) -> tuple[list[Message], Message]:
        errors = self._ray.exceptions
        try:
            told, last = self._ray.get(self.answer)
        except errors.RayTaskError as error:  # what came could not be read there: another Python, a package missing
            return [], ("crashed", str(error))
        except errors.RayError as error:
            return [], ("died", _loss(str(error)))
        if last == ("stopped",) and not self._asked_to_stop:
            last = ("died", _loss("its node is gone"))
        return told, last


def _loss(why: str) -> UserError:
    lines = [line.strip() for line in why.splitlines() if line.strip()]
    # The last line of a traceback says what is wrong; else the first line does.
    found = (
        lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0] if lines else "no reason given"
    )
    return UserError(
        "its worker in the Ray cluster was lost again and again",
        expected="a worker that lives until its run is finished, on nodes where ortholora is installed as it is here",
        found=found,
        todo="see the logs of the cluster; if memory ran out, ask for more CPUs or GPUs for a run, so that fewer share "
        "a node; start the same command again to go on",
    )
