"""Law 4 for the trainer: several processes train what one process trains."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging import version

from ortholora.data.planner import own_rows

SCRIPT = Path(__file__).with_name("ddp_script.py")
pytestmark = pytest.mark.slow


def run(out: Path, ranks: int, method: str, mixing: Any, stop_after: int = 0, **sections: Any) -> dict[str, Any]:
    """Train in `ranks` processes, started by torchrun where there are several."""
    out.mkdir(parents=True, exist_ok=True)
    arguments = [str(SCRIPT), str(out), method, json.dumps({"mixing": mixing, **sections}), str(stop_after)]
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    tests = str(Path(__file__).parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([tests, *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *launcher, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "result.pt", weights_only=False)


@functools.cache
def alone(method: str, **sections: Any) -> dict[str, Any]:
    """One process, one mixed batch a step."""
    return run(Path(tempfile.mkdtemp()), 1, method, {"layout": "mixed", "rows_per_task": 4}, **sections)


def assert_same_run(found: dict[str, Any], expected: dict[str, Any]) -> None:
    differences = {n: float((found["weights"][n] - w).abs().max()) for n, w in expected["weights"].items()}
    assert max(differences.values()) < 2e-4, differences
    drift = [float((found["weights"][n] - w).mean()) for n, w in expected["weights"].items()]
    assert max(map(abs, drift)) < 2e-5
    assert found["scores"].keys() == expected["scores"].keys()
    assert all(abs(found["scores"][k] - v) < 0.05 for k, v in expected["scores"].items() if k.endswith("_average"))
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert found["tokens"][0] == expected["tokens"][0]  # the same rows, counted over all ranks


@pytest.mark.parametrize(
    ("ranks", "method", "mixing"),
    [
        (2, "ortho", {"layout": "mixed", "rows_per_task": 4}),
        (3, "ortho", {"layout": "by-task", "rows_per_task": 4}),
        (2, "joint", {"layout": "auto", "launch_tokens": 0, "rows_per_task": 4}),
        (2, "gradnorm", {"layout": "by-task", "rows_per_task": 4}),
        (2, "balanced-signal", {"layout": "by-length", "rows_per_task": 4}),
    ],
    ids=str,
)
def test_several_processes_are_one(ranks: int, method: str, mixing: Any, tmp_path: Path) -> None:
    assert_same_run(run(tmp_path, ranks, method, mixing), alone(method))


@pytest.mark.parametrize("layout", ["by-length", "padding-free"])
def test_a_language_model_too(layout: str, tmp_path: Path) -> None:
    """Target tokens are counted over all ranks, and what one rank generates or chooses is known to all."""
    mixing = {"layout": layout, "rows_per_task": 4}
    found, expected = run(tmp_path, 2, "ortho", mixing, language=True), alone("ortho", language=True)
    assert_same_run(found, expected)
    for key in ("eval_colour/accuracy", "eval_sound/exact_match", "eval_count/loss"):
        assert found["scores"][key] == pytest.approx(expected["scores"][key], abs=0.01)


@pytest.mark.skipif(
    version.parse(transformers.__version__).major < 5,
    reason="transformers 4 cannot load an optimizer onto `cpu:0`, the device of several processes without a GPU",
)
def test_a_resumed_run_of_two_processes_is_the_run_of_one(tmp_path: Path) -> None:
    mixing = {"layout": "mixed", "rows_per_task": 4}
    run(tmp_path, 2, "ortho", mixing, stop_after=4, training={"save_every": 2})
    names = {path.name for path in (tmp_path / "run" / "checkpoints" / "checkpoint-4").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "ortholora_state.pt"} <= names
    assert not (tmp_path / "run" / "checkpoints" / ".saving").exists()
    assert_same_run(run(tmp_path, 2, "ortho", mixing, training={"save_every": 2}), alone("ortho"))


def test_shares_are_even() -> None:
    lengths = [90, 80, 70, 60, 50, 40, 30, 20, 10, 9, 8]
    shares = [own_rows(lengths, rank, 3) for rank in range(3)]
    assert sorted(row for part in shares for row in part) == list(range(11))
    assert sorted(len(part) for part in shares) == [3, 4, 4]
    loads = [sum(lengths[row] for row in part) for part in shares]
    assert max(loads) - min(loads) < 25
