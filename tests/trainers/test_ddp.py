"""Law 4 for the trainer: several processes train what one process trains."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from many import Plan, trained, trained_by
from packaging import version

from ortholora.data.planner import own_rows

pytestmark = pytest.mark.slow
#: transformers 4 cannot load an optimizer onto `cpu:0`, the device of several processes without a GPU.
RESUMES = version.parse(transformers.__version__).major >= 5


def plan(folder: str, method: str, layout: str, **more: Any) -> Plan:
    mixing = {"layout": layout, "rows_per_task": 4} | ({"launch_tokens": 0} if layout == "auto" else {})
    return {"folder": folder, "method": method, "sections": {"mixing": mixing}, **more}


def saving(folder: str, **more: Any) -> Plan:
    run = plan(folder, "ortho", "mixed", **more)
    return run | {"sections": run["sections"] | {"training": {"save_every": 2}}}


#: Number of processes → the runs that they do one after the other.
RUNS = {
    2: [
        plan("mixed", "ortho", "mixed"),
        plan("auto", "joint", "auto"),
        plan("by-task", "gradnorm", "by-task"),
        plan("by-length", "balanced-signal", "by-length"),
        plan("language by-length", "ortho", "by-length", language=True),
        plan("language padding-free", "ortho", "padding-free", language=True),
        *([saving("cut", stop_after=4), saving("cut")] if RESUMES else []),
    ],
    3: [plan("by-task", "ortho", "by-task")],
}


@functools.cache
def together(ranks: int) -> tuple[list[dict[str, Any]], Path]:
    """What came out of the runs in so many processes, and their folder: starting the processes is what takes long."""
    folder = Path(tempfile.mkdtemp())
    return trained_by(ranks, folder, RUNS[ranks]), folder


@functools.cache
def alone(method: str, language: bool = False) -> dict[str, Any]:
    """One process, one mixed batch a step."""
    return trained(Path(tempfile.mkdtemp()), plan("", method, "mixed", language=language))


def assert_same_run(found: dict[str, Any], expected: dict[str, Any]) -> None:
    differences = {n: float((found["weights"][n] - w).abs().max()) for n, w in expected["weights"].items()}
    assert max(differences.values()) < 2e-4, differences
    drift = [float((found["weights"][n] - w).mean()) for n, w in expected["weights"].items()]
    assert max(map(abs, drift)) < 2e-5
    assert found["scores"].keys() == expected["scores"].keys()
    assert all(abs(found["scores"][k] - v) < 0.05 for k, v in expected["scores"].items() if k.endswith("_average"))
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert found["tokens"][0] == expected["tokens"][0]  # the same rows, counted over all ranks


@pytest.mark.parametrize(("ranks", "index"), [(2, 0), (2, 1), (2, 2), (2, 3), (3, 0)])
def test_several_processes_are_one(ranks: int, index: int) -> None:
    assert_same_run(together(ranks)[0][index], alone(RUNS[ranks][index]["method"]))


@pytest.mark.parametrize("index", [4, 5])
def test_a_language_model_too(index: int) -> None:
    """Target tokens are counted over all ranks, and what one rank generates or chooses is known to all."""
    found, expected = together(2)[0][index], alone("ortho", language=True)
    assert_same_run(found, expected)
    for key in ("eval_colour/accuracy", "eval_sound/exact_match", "eval_count/loss"):
        assert found["scores"][key] == pytest.approx(expected["scores"][key], abs=0.01)


@pytest.mark.skipif(not RESUMES, reason="this transformers cannot resume so")
def test_a_resumed_run_of_two_processes_is_the_run_of_one() -> None:
    found, folder = together(2)
    checkpoints = folder / "cut" / "run" / "checkpoints"
    names = {path.name for path in max(checkpoints.glob("checkpoint-*")).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "ortholora_state.pt"} <= names
    assert not (checkpoints / ".saving").exists()
    assert found[-1]["start"] == "checkpoint-4"
    assert_same_run(found[-1], alone("ortho"))


def test_shares_are_even() -> None:
    lengths = [90, 80, 70, 60, 50, 40, 30, 20, 10, 9, 8]
    shares = [own_rows(lengths, rank, 3) for rank in range(3)]
    assert sorted(row for part in shares for row in part) == list(range(11))
    assert sorted(len(part) for part in shares) == [3, 4, 4]
    loads = [sum(lengths[row] for row in part) for part in shares]
    assert max(loads) - min(loads) < 25
