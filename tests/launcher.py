"""Command lines in processes of their own, as a shell or a launcher starts them, but forked from a server."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from forked import as_rank, context, told_by_a_launcher
from sharding_on_cpu import on_the_cpu

INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
#: What a process does before the command: a function of a module, and its arguments.
Before = tuple[Callable[..., None], tuple[Any, ...]]


@dataclass(frozen=True)
class Ended:
    """How one process ended: its exit code (negative: the signal), and what it wrote."""

    code: int
    out: str
    err: str


def start(home: Path, name: str, words: Sequence[object], *before: Before) -> BaseProcess:
    """Start a command line in `home`; what it prints goes into files of that name there."""
    process = context().Process(target=_run, args=(home, name, [str(word) for word in words], before))
    process.start()
    return process


def end(home: Path, name: str, process: BaseProcess) -> Ended:
    """Wait for a command line; it is killed if it takes minutes."""
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
    return Ended(int(process.exitcode or 0), *(_read(home / f"{name}.{what}") for what in ("out", "err")))


def run(home: Path, words: Sequence[object], *before: Before) -> Ended:
    """Start a command line and wait for it."""
    return end(home, "0", start(home, "0", words, *before))


def launch(home: Path, *ranks: Sequence[object], strike: tuple[int, int, int] | None = None) -> list[Ended]:
    """Run the command line once for each list of words, in processes that know of each other, in `home`.

    Args:
        home: Where they run, and where they write what they print.
        ranks: The words of each; at their head `--sharded` lets it shard on a CPU, and `--in FOLDER` moves it there.
        strike: Send a signal to a rank after a step: signal, rank, step.
    """
    told = told_by_a_launcher(len(ranks))
    processes = []
    for rank, given in enumerate(ranks):
        words, before = list(given), [(as_rank, (rank, told))]
        if words[0] == "--sharded":
            words, before = words[1:], [*before, (on_the_cpu, ())]
        if words[0] == "--in":
            words, before = words[2:], [*before, (os.chdir, (words[1],))]
        if strike is not None and strike[1] == rank:
            before.append((strike_after, (strike[0], strike[2])))
        processes.append(start(home, str(rank), words, *before))
    return [end(home, str(rank), process) for rank, process in enumerate(processes)]


def _read(path: Path) -> str:
    """What was written, without torch's own warnings: the command turns them off, but torch was imported before it."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"\[(rank\d+\]:\[)?W\d", line))


def _run(home: Path, name: str, words: list[str], before: Sequence[Before]) -> None:
    """One process."""
    for number, what in ((1, "out"), (2, "err")):
        os.dup2(os.open(home / f"{name}.{what}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is no garbage: a training collects twice
    os.chdir(home)
    for function, arguments in before:
        function(*arguments)
    sys.argv = ["ortholora", *words]
    from ortholora.__main__ import main

    main()


def strike_after(number: int, step: int) -> None:
    """Have this process send itself a signal after a step of a run."""
    from ortholora.runs.progress import ProgressCallback

    own = ProgressCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), number)
        return own(self, args, state, control, **kwargs)

    ProgressCallback.on_step_end = on_step_end  # type: ignore[method-assign]


def strike_at_save(number: int, count: int) -> None:
    """Have this process send itself a signal when it calls `torch.save` for that many times."""
    save, seen = torch.save, 0

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), number)
        save(*args, **kwargs)

    torch.save = counted


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond so many bytes: a write fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def set_environment(**values: str) -> None:
    """Change this process's environment variables."""
    os.environ.update(values)
