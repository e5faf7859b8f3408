"""Several processes of one command, as a launcher starts them, but forked from a server that has all imported."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharding_on_cpu import on_the_cpu

#: What a command imports in its first seconds.
PRELOADED = ["ortholora.study.train", "ortholora.cli.app", "ortholora.cli.progress", "peft.tuners.lora.bnb"]
PRELOADED += ["transformers.models.bert.modeling_bert", "transformers.models.auto.modeling_auto", "accelerate"]


@dataclass(frozen=True)
class Ended:
    """How one process ended: its exit code (negative: the signal), and what it wrote."""

    code: int
    out: str
    err: str


def launch(home: Path, *ranks: list[object], strike: tuple[int, int, int] | None = None) -> list[Ended]:
    """Run the command line once for each list of words, in processes that know of each other, in `home`.

    Args:
        home: Where they run, and where they write what they print.
        ranks: The words of each.
        strike: Send a signal to a rank after a step: signal, rank, step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": len(ranks), "LOCAL_WORLD_SIZE": len(ranks), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    processes = [
        context.Process(target=_run, args=(home, rank, environment, [str(word) for word in words], strike))
        for rank, words in enumerate(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [
        Ended(int(process.exitcode or 0), *(_read(home / f"{rank}.{name}") for name in ("out", "err")))
        for rank, process in enumerate(processes)
    ]


def _read(path: Path) -> str:
    """What was written, without torch's own warnings: the command turns them off, but torch was imported before it."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"\[(rank\d+\]:\[)?W\d", line))


def _run(home: Path, rank: int, environment: dict[str, Any], words: list[str], strike: Any) -> None:
    """One process; at their head `--sharded` lets it shard on a CPU, and `--in FOLDER` moves it there."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(home / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.update({name: str(value) for name, value in {**environment, "RANK": rank, "LOCAL_RANK": rank}.items()})
    if words[0] == "--sharded":
        words = words[1:]
        on_the_cpu()
    if words[0] == "--in":
        home, words = Path(words[1]), words[2:]
    os.chdir(home)
    if strike is not None and strike[1] == rank:
        _strike(strike[0], strike[2])
    sys.argv = ["ortholora", *words]
    from ortholora.__main__ import main

    main()


def _strike(number: int, after: int) -> None:
    from ortholora.runs.progress import ProgressCallback

    step = ProgressCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == after:
            os.kill(os.getpid(), number)
        return step(self, args, state, control, **kwargs)

    ProgressCallback.on_step_end = on_step_end  # type: ignore[method-assign]


TERM, KILL = signal.SIGTERM, signal.SIGKILL
