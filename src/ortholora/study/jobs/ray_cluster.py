"""The way to a Ray cluster (`compare --on`): its address, the connection, and how many runs there is room for."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ortholora.errors import UserError, missing_extra
from ortholora.study.jobs.ray_workers import RayWorkers, Resources

_ADDRESS = re.compile(r"ray://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?/?")
#: Ray's own default for `ray://`.
_PORT = 10001
#: Seconds for a port to open, and for a cluster to take us in.
_KNOCK, _ENTER = 10.0, 60.0


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
def ray_workers(where: str, out: Path, jobs: int | None = None, each: Resources | None = None) -> Iterator[RayWorkers]:
    """Be connected with a Ray cluster.

    Args:
        where: `ray`, for the cluster that this machine is in (or that RAY_ADDRESS names), or `ray://HOST:PORT`.
        out: The folder of the study; all nodes must see it under the same path.
        jobs: The most runs at once; None: as many as there is room for.
        each: What one run takes.

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
        each = _settled(each or Resources(), nodes)
        size = room_for(each, nodes)
        yield RayWorkers(ray, each, min(jobs or size, size), len(nodes), out)
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
        # The last line of a long story says what happened.
        raise _no_answer(address, str(failure[0]).strip().rpartition("\n")[2] or type(failure[0]).__name__)


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


def _settled(each: Resources, nodes: Sequence[Mapping[str, float]]) -> Resources:
    if each.gpus is not None:
        return each
    return Resources(each.cpus, 1.0 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0)


def room_for(each: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many runs fit on the nodes at once.

    Args:
        each: What one run takes.
        nodes: Name of a resource → how much of it there is, for each node.

    Raises:
        UserError: None does.
    """
    needs = {"CPU": float(each.cpus), "GPU": each.gpus or 0.0}
    fit = [min(math.floor(node.get(name, 0) / need) for name, need in needs.items() if need) for node in nodes]
    if not sum(fit):
        shown = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes[:8])
        raise UserError(
            "The Ray cluster has no room for a run",
            expected=f"a node with {each.cpus} CPUs and {each.gpus or 0:g} GPUs (--cpus-per-run, --gpus-per-run)",
            found=f"nodes with: {shown}" if nodes else "no node that is alive",
            todo="ask for less for a run, or add a node",
        )
    return sum(fit)
