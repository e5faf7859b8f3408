"""Kill `train` and `compare` at random moments; each must go on to the bytes of the undisturbed run.

    python tests/faults/kill.py --count 100 --seed 1

A moment is drawn in seconds of computing, so that a slow machine kills in the same places. A process ends there
without a handler, a `finally` or a flush, as by `kill -9`. Prints what was wrong; exits with 1 where something was. The
processes are forks of this one, which has everything imported. `test_kills.py` does a few.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402

from forked import preload  # noqa: E402
from ortholora.cli.app import app  # noqa: E402
from ortholora.runs.record import read_record  # noqa: E402
from tiny import tiny_config  # noqa: E402

COMMANDS = {"train": ["train", "kill.yaml"], "compare": ["compare", "kill.yaml", "--tasks", "topic,score"]}
#: What differs between two runs of the same command.
_MEASURED = ("step_seconds", "peak_memory_bytes", "provenance")


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: a signal), seconds of computing, and what it printed."""

    code: int
    seconds: float
    output: str


def prepare(home: Path) -> None:
    """Write backbone, data and configuration; import what the commands would, each for itself."""
    preload()
    tiny_config(
        home,
        "kill",
        lora={"dropout": 0.1},
        mixing={"rows_per_task": 20, "layout": "mixed", "micro_batches": 2},
        training={"steps": 6, "save_every": 2, "warmup_steps": 1, "eval_every": 3},
        study={"seeds": [0], "methods": ["ortho"], "bootstrap": 100},
    )


def command(home: Path, words: Iterable[str], dies_after: float | None = None) -> Ended:
    """Do a command in a process of its own, which may die after some seconds of computing."""
    log = home / "log"
    child = os.fork()
    if child == 0:
        _become(home, list(words), log, dies_after)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, usage.ru_utime + usage.ru_stime, log.read_text(encoding="utf-8", errors="replace"))


def _become(home: Path, words: list[str], log: Path, dies_after: float | None) -> None:
    """The child: never returns."""
    code = 70
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(home)
        torch.set_num_threads(1)
        if dies_after is not None:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process on the spot
            signal.setitimer(signal.ITIMER_PROF, dies_after)
        app(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def left(folder: Path) -> dict[str, Any]:
    """All that a command left but for times, memory and where it was made; arrays and weights as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "result.json":
            record = vars(read_record(path.parent)).copy()
            for measured in _MEASURED:
                del record[measured]
            for arrays in ("targets", "predictions"):
                record[arrays] = {task: array.tobytes() for task, array in record[arrays].items()}
            found[name] = repr(record)
        elif path.name == "summary.json":
            summary = json.loads(path.read_bytes())
            found[name] = {key: summary[key] for key in ("methods", "gap", "rules", "recovered")}
        elif path.suffix in (".safetensors", ".npz"):
            found[name] = path.read_bytes()
        elif path.name.startswith(".") or path.suffix in (".old", ".tmp"):
            found[f"left over: {name}"] = None
        elif path.is_file() and "checkpoints" not in path.parts:
            found[name] = None
    return found


def kill(home: Path, name: str, whole: dict[str, Any], seconds: float, draw: random.Random) -> tuple[int, str | None]:
    """Kill a command once or twice, and let it end.

    Args:
        home: See `prepare`.
        name: Of the command.
        whole: What the undisturbed one left.
        seconds: How long that computed.
        draw: Draws the moments.

    Returns:
        How often it was killed, and what is wrong.
    """
    out = home / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [*COMMANDS[name], "--out", "out"]
    kills = 0
    for _ in range(draw.choice([1, 1, 2])):
        moment = draw.uniform(0.02, 1.0) * seconds
        ended = command(home, words, moment)
        if ended.code == 0:
            break  # it had little left to do
        if ended.code != -signal.SIGPROF:
            return kills, f"exit code {ended.code} before the kill at {moment:.2f} s: {ended.output[-600:]}"
        kills += 1
    ended = command(home, words)
    if ended.code:
        return kills, f"exit code {ended.code} after the kill at {moment:.2f} s: {ended.output[-600:]}"
    found = left(out)
    different = [key for key in {**whole, **found} if whole.get(key, 0) != found.get(key, 0)]
    return kills, f"killed at {moment:.2f} s, and then other than undisturbed: {different}" if different else None


def kill_often(home: Path, names: Iterable[str], count: int, seed: int) -> tuple[int, list[str]]:
    """Kill until there were `count` kills.

    Returns:
        The number of kills, and what was wrong.
    """
    prepare(home)
    draw = random.Random(seed)
    whole, seconds, wrong, kills = {}, {}, [], 0
    for name in names:
        ended = command(home, [*COMMANDS[name], "--out", f"whole-{name}"])
        assert ended.code == 0, ended.output
        whole[name], seconds[name] = left(home / f"whole-{name}"), ended.seconds
    while kills < count:
        name = draw.choice(list(whole))
        more, problem = kill(home, name, whole[name], seconds[name], draw)
        kills += more
        if problem:
            wrong.append(f"{name}, after {kills} kills with seed {seed}: {problem}")
            print(wrong[-1], flush=True)
            if more == 0:
                kills += 1  # something else ends the command
    return kills, wrong


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", choices=list(COMMANDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        names = [options.command] if options.command else list(COMMANDS)
        kills, wrong = kill_often(Path(home), names, options.count, options.seed)
    print(f"{kills} kills of {' and '.join(names)} with seed {options.seed}, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
