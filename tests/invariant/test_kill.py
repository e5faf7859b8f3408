"""A run that is killed in the middle of a step goes on to the same bytes: row order and visit orders included.

`tests/cli/test_stop_and_resume.py` stops runs politely, and kills one while it saves. Here the kill comes from
outside, between backward and optimizer, a step after the last checkpoint, with three tasks: two have but one
order of visits.
"""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from launcher import end, set_environment, start
from tiny import tiny_config

pytestmark = pytest.mark.slow
STEPS, SAVE_EVERY, KILLED_IN = 8, 3, 4

#: A rule in the user's folder: Ortho, but it writes down what it saw and drew, and waits in one step if told to.
RULE = f"""
import hashlib, os, time
from pathlib import Path
from ortholora.engine import Ortho

class Watched(Ortho):
    def __call__(self, gram, context):
        seen = hashlib.sha256(gram.numpy().tobytes() + context.generator.get_state().numpy().tobytes())
        combination = super().__call__(gram, context)
        seen.update(combination.numpy().tobytes())
        with Path(os.environ["WATCHED"]).open("a") as file:
            file.write(f"{{context.step}} {{seen.hexdigest()}}\\n")
        if "HOLD" in os.environ and context.step == {KILLED_IN}:
            Path(os.environ["HOLD"]).touch()
            time.sleep(300)
        return combination
"""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., BaseProcess]]:
    """Starts `train`; nothing of it survives the test."""
    started = []

    def begin(out: str, log: str, **environment: str) -> BaseProcess:
        # No GPU: bytes are compared.
        settings = {"CUDA_VISIBLE_DEVICES": "", "WATCHED": str(tmp_path / log), **environment}
        before = functools.partial(set_environment, **settings)
        started.append(start(tmp_path, out, ["train", "kill.yaml", "--out", out], (before, ())))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


def kill_when(process: BaseProcess, reached: Path) -> None:
    """Wait until the run has come so far, then kill it as an administrator or the kernel would."""
    deadline = time.monotonic() + 120
    while not reached.exists():
        assert process.is_alive(), "it ended"
        assert time.monotonic() < deadline, "the run never came to the step"
        time.sleep(0.05)
    os.kill(int(process.pid or 0), signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def finish(home: Path, name: str, process: BaseProcess) -> str:
    ended = end(home, name, process)
    assert ended.code == 0, ended.err
    return ended.out


def sums(folder: Path) -> dict[str, str]:
    names = ("adapter_model.safetensors", "heads.safetensors")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def steps_of(path: Path) -> list[tuple[int, str]]:
    """Step → digest of the Gram (hence of the rows, and of the weights), of the generator and of the answer."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, begin: Any) -> None:
    training = {"steps": STEPS, "save_every": SAVE_EVERY, "warmup_steps": 2}
    # 20 of a task's 96 rows in each step: in the fifth the streams start over, after the kill and the checkpoint.
    mixing = {"rows_per_task": 20, "layout": "mixed", "micro_batches": 2}
    tiny_config(tmp_path, "kill", rule="watched:Watched", lora={"dropout": 0.1}, mixing=mixing, training=training)
    (tmp_path / "watched.py").write_text(RULE, encoding="utf-8")

    whole = begin("whole", "whole.log")
    held = begin("cut", "cut.log", HOLD=str(tmp_path / "held"))
    kill_when(held, tmp_path / "held")
    finish(tmp_path, "whole", whole)
    kept = [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()]
    assert kept == [f"checkpoint-{SAVE_EVERY}"]
    assert not (tmp_path / "cut" / "result.json").exists()
    assert f"going on from the checkpoint of step {SAVE_EVERY}" in finish(tmp_path, "cut", begin("cut", "cut.log"))

    assert sums(tmp_path / "cut") == sums(tmp_path / "whole")
    expected, found = steps_of(tmp_path / "whole.log"), steps_of(tmp_path / "cut.log")
    assert [step for step, _ in expected] == list(range(STEPS))
    # Up to the kill, and once more from the checkpoint on: the same rows, the same draws, the same answer.
    assert found == expected[: KILLED_IN + 1] + expected[SAVE_EVERY:]
    assert len({digest for _, digest in expected}) == STEPS
