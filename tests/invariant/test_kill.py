"""A run that is killed in the middle of a step goes on to the same bytes: row order and visit orders included.

`tests/cli/test_stop_and_resume.py` stops runs politely, and kills one while it saves. Here the kill comes from
outside, between backward and optimizer, a step after the last checkpoint, with three tasks: two have but one
order of visits.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

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
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -m ortholora train`; nothing of it survives the test."""
    with ExitStack() as stack:

        def begin(out: str, log: str, **environment: str) -> subprocess.Popen[str]:
            process = stack.enter_context(_train(tmp_path, out, log, **environment))
            stack.callback(process.kill)
            return process

        yield begin


def _train(home: Path, out: str, log: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ortholora", "train", "kill.yaml", "--out", out]
    # One thread and no GPU: bytes are compared.
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WATCHED": str(home / log)}
    settings |= environment
    return subprocess.Popen(
        command, cwd=home, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def kill_when(process: subprocess.Popen[str], reached: Path) -> None:
    """Wait until the run has come so far, then kill it as an administrator or the kernel would."""
    deadline = time.monotonic() + 120
    while not reached.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run never came to the step"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


def sums(folder: Path) -> dict[str, str]:
    names = ("adapter_model.safetensors", "heads.safetensors")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def steps_of(path: Path) -> list[tuple[int, str]]:
    """Step → digest of the Gram (hence of the rows, and of the weights), of the generator and of the answer."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, start: Any) -> None:
    training = {"steps": STEPS, "save_every": SAVE_EVERY, "warmup_steps": 2}
    # 20 of a task's 96 rows in each step: in the fifth the streams start over, after the kill and the checkpoint.
    mixing = {"rows_per_task": 20, "layout": "mixed", "micro_batches": 2}
    tiny_config(tmp_path, "kill", rule="watched:Watched", lora={"dropout": 0.1}, mixing=mixing, training=training)
    (tmp_path / "watched.py").write_text(RULE, encoding="utf-8")

    whole = start("whole", "whole.log")
    held = start("cut", "cut.log", HOLD=str(tmp_path / "held"))
    kill_when(held, tmp_path / "held")
    finish(whole)
    kept = [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()]
    assert kept == [f"checkpoint-{SAVE_EVERY}"]
    assert not (tmp_path / "cut" / "result.json").exists()
    assert f"going on from the checkpoint of step {SAVE_EVERY}" in finish(start("cut", "cut.log"))

    assert sums(tmp_path / "cut") == sums(tmp_path / "whole")
    expected, found = steps_of(tmp_path / "whole.log"), steps_of(tmp_path / "cut.log")
    assert [step for step, _ in expected] == list(range(STEPS))
    # Up to the kill, and once more from the checkpoint on: the same rows, the same draws, the same answer.
    assert found == expected[: KILLED_IN + 1] + expected[SAVE_EVERY:]
    assert len({digest for _, digest in expected}) == STEPS
