"""Workers in a Ray cluster, and the way to it (`compare --on`). `ray_actor.py` is what runs there.

Ray finds room, starts processes and says when one is lost. What is done next is decided in `pool.py`, as for the
processes of `--jobs`.
"""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ortholora.errors import UserError, missing_extra
from ortholora.files import write_text
from ortholora.study.jobs.pool import Prepare
from ortholora.study.jobs.ray_actor import Actor, Place
from ortholora.study.jobs.sharing import THREADS
from ortholora.study.jobs.worker import Message

if TYPE_CHECKING:
    from ortholora.runs.progress import RunProgress

_ADDRESS = re.compile(r"ray://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?/?")
#: Ray's own default for `ray://`.
_PORT = 10001
#: Seconds for a port to open, and for a cluster to take us in.
_KNOCK, _ENTER = 10.0, 60.0
#: A worker's last words that it did not hear itself.
_NEWS = 5.0


@dataclass(frozen=True)
class Share:
    """What one run takes of the cluster.

    Attributes:
        cpus: CPU cores; also the threads of the run.
        gpus: GPUs, or a part of one; None: one if the cluster has any.
    """

    cpus: int = 1
    gpus: float | None = None


def check_on(where: str) -> None:
    """Check what can be checked before the cluster is asked: the address, and that Ray is installed.

    Raises:
        UserError: It is no address.
        MissingExtraError: Ray is not installed.
    """
    if where != "ray" and not _ADDRESS.fullmatch(where):
        raise UserError(
            "--on cannot be read",
            expected="`ray` for the cluster that this machine is in, or `ray://HOST:PORT`",
            found=where or "nothing",
            todo="correct the option",
        )
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise missing_extra("--on", "ray", error) from error


@contextmanager
def ray_workers(where: str, out: Path, jobs: int | None = None, share: Share | None = None) -> Iterator[RayWorkers]:
    """Be connected with a Ray cluster.

    Args:
        where: `ray`, for the cluster that this machine is in (or that RAY_ADDRESS names), or `ray://HOST:PORT`.
        out: The folder of the study; all nodes must see it under the same path.
        jobs: The most runs at once; None: as many as there is room for.
        share: What one run takes.

    Raises:
        UserError: There is no cluster, it does not answer, or has no node with room for one run.
        MissingExtraError: Ray is not installed.
    """
    check_on(where)
    import ray

    address = os.environ.get("RAY_ADDRESS", "auto") if where == "ray" else where
    try:
        _enter(ray, address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = _settled(share or Share(), nodes)
        size = room_for(share, nodes)
        yield RayWorkers(ray, share, min(jobs or size, size), len(nodes), out)
    finally:
        ray.shutdown()


def _enter(ray: Any, address: str) -> None:
    if found := _ADDRESS.fullmatch(address):
        _knock(address, found[1].strip("[]"), int(found[2] or _PORT))
    elif address.rpartition(":")[2].isdecimal():
        host, _, port = address.rpartition(":")
        _knock(address, host, int(port))
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            # With `address` it joins; it never starts a cluster.
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as error:
            failure.append(error)

    # A thread, because nothing else bounds the time that Ray waits for something that is no Ray. In the main one Ray
    # would also take SIGTERM for itself.
    entering = threading.Thread(target=enter, daemon=True)
    entering.start()
    entering.join(_ENTER)
    if entering.is_alive():
        raise _no_answer(address, f"no answer in {_ENTER:.0f} seconds")
    if failure:
        if isinstance(failure[0], ImportError):
            raise missing_extra("--on ray://", "ray", failure[0])
        raise _no_answer(address, str(failure[0]).strip().partition("\n")[0] or type(failure[0]).__name__)


def _knock(address: str, host: str, port: int) -> None:
    """Try the port: Ray itself would try for long, and print meanwhile."""
    try:
        socket.create_connection((host, port), timeout=_KNOCK).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, str(error)) from None


def _no_answer(address: str, found: str) -> UserError:
    if address == "auto":
        return UserError(
            "--on ray: this machine is in no Ray cluster",
            expected="a cluster that was started, with this machine as one of its nodes",
            found=found,
            todo="start one (`ray start --head`), or give the address of one: --on ray://HOST:10001",
        )
    return UserError(
        f"The Ray cluster at {address} does not answer",
        expected="the address of a running cluster: ray://HOST:10001, with the same versions of Ray and Python as here",
        found=found,
        todo="correct the address, or see with `ray status` on the cluster whether it runs",
    )


def _settled(share: Share, nodes: Sequence[Mapping[str, float]]) -> Share:
    if share.gpus is not None:
        return share
    return Share(share.cpus, 1.0 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0)


def room_for(share: Share, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many runs fit on the nodes at once.

    Args:
        share: What one run takes.
        nodes: Name of a resource → how much of it there is, for each node.

    Raises:
        UserError: None does.
    """
    needs = {"CPU": float(share.cpus), "GPU": share.gpus or 0.0}
    fit = [min(math.floor(node.get(name, 0) / need) for name, need in needs.items() if need) for node in nodes]
    if not sum(fit):
        shown = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes[:8])
        raise UserError(
            "The Ray cluster has no room for a run",
            expected=f"a node with {share.cpus} CPUs and {share.gpus or 0:g} GPUs (--cpus-per-run, --gpus-per-run)",
            found=f"nodes with: {shown}" if nodes else "no node that is alive",
            todo="ask for less for a run, or add a node",
        )
    return sum(fit)


class RayWorkers:
    """Workers for `work_off`: actors in the cluster that this process is connected with."""

    #: A run may take its node down with it (memory): not again and again.
    patience = 3

    def __init__(self, ray: Any, share: Share, size: int, nodes: int, out: Path) -> None:
        self.size = size
        self._ray, self._share, self._nodes = ray, share, nodes
        self._mark = out.resolve() / f".ray-{secrets.token_hex(8)}"
        self._work: Any = None

    def __str__(self) -> str:
        """Say in one sentence what is used."""
        gpus = f" and {self._share.gpus:g} GPU" if self._share.gpus else ""
        nodes = f"{self._nodes} node{'' if self._nodes == 1 else 's'}"
        cpus = f"{self._share.cpus} CPU{'' if self._share.cpus == 1 else 's'}"
        times = "" if self.size == 1 else ": step times are no measure of cost"
        return f"On a Ray cluster of {nodes}: {self.size} at once, {cpus}{gpus} each{times}."

    def bring(self, prepare: Prepare) -> None:
        """Put the work where every node can get it, and a mark into the study's folder."""
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._mark, "This file is here while workers look whether they see this folder.\n")
        self._work = self._ray.put(prepare)

    def hire(self, line: RunProgress) -> _RayWorker:
        """Ask for an actor; it starts when there is room."""
        options = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus or 0, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(Actor).options(max_restarts=0, max_concurrency=2, **options).remote()
        here = os.getcwd()
        path = (here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
        # As with --jobs: what the user set for all, or the worker's share.
        threads = {THREADS: os.environ.get(THREADS) or str(self._share.cpus)}
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
        self.line, self.gone = line, False
        self.item: int | None = None
        self._ray, self._actor, self._work = ray, actor, work
        self._asked_to_stop = False
        #: What it was asked to do last, and what it was asked to tell meanwhile.
        self.answer, self._news = actor.begin.remote(place), None

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
