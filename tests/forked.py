"""Processes forked from a server that has imported what commands and trainers need: a start costs nothing, not 6 s."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import torch

#: The server has one list, whoever starts it first. What is not installed is left out; modules of tests would be, too.
PRELOADED = ["ortholora.study.train", "ortholora.study.compare", "ortholora.study.report.write", "ortholora.data.read"]
PRELOADED += ["ortholora.cli.app", "ortholora.cli.progress", "ortholora.trl", "trl.trainer.sft_trainer", "accelerate"]
PRELOADED += ["matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "peft.tuners.lora.bnb"]
PRELOADED += [f"transformers.models.{m}" for m in ("auto.modeling_auto", "bert.modeling_bert", "llama.modeling_llama")]


def preload() -> None:
    """Import the list here, for processes that are forks of this one."""
    for name in PRELOADED:
        with suppress(ImportError):
            import_module(name)
    gc.freeze()


def context() -> ForkServerContext:
    """Where processes are made. They have one thread, and not what is in `os.environ` now but what the server has."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        ensure_running()
    finally:
        del os.environ["OMP_NUM_THREADS"]
        os.environ |= {} if before is None else {"OMP_NUM_THREADS": before}
    return found


def told_by_a_launcher(ranks: int) -> dict[str, str]:
    """The environment variables that all of several processes have alike."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    numbers = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(number) for name, number in numbers.items()}


def as_rank(rank: int, told: dict[str, str]) -> None:
    """Make this process one of several."""
    os.environ.update(told | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)


def in_ranks(ranks: int, work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Do `work(folder, *arguments)` in several processes that know of each other; all must come to its end.

    Args:
        ranks: How many.
        work: A function of a module.
        folder: Exists; a rank that fails says why there.
        arguments: More arguments.
    """
    told = told_by_a_launcher(ranks)
    processes = [context().Process(target=_do, args=(rank, told, work, folder, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    left = {process.sentinel: process for process in processes}
    while left:
        ended = [left.pop(sentinel) for sentinel in wait(list(left), timeout=280)]  # type: ignore[call-overload]
        for process in ended:
            process.join()
        if not ended or any(process.exitcode for process in ended):
            for process in left.values():  # which would wait for the failed one
                process.kill()
                process.join()
            break
    said = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("rank-*.err"))]
    assert [process.exitcode for process in processes] == [0] * ranks, "\n".join(said)


def _do(rank: int, told: dict[str, str], work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    as_rank(rank, told)
    gc.freeze()  # what was imported is no garbage: a training collects twice
    code = 1
    try:
        work(folder, *arguments)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        code = 0
    except BaseException:
        (folder / f"rank-{rank}.err").write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        sys.stdout.flush()
        os._exit(code)  # the teardown of gloo aborts or hangs now and then (docs/scaling.md)
