"""However a step is cut into micro-batches, it trains the same: 8 x 1 rows = 1 x 8 rows."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from engine import _models as models
from engine._rules import Means
from ortholora.runs import arguments
from ortholora.runs.method import Method
from workspaces import JOINT, ORTHO

from ._runs import Loop, Run, assert_same_run, train, trainer_of, trainer_run

METHODS = pytest.mark.parametrize("method", [JOINT, ORTHO], ids=["joint", "ortho"])


@pytest.mark.parametrize("cuts", [(1,) * 8, (3, 1, 4)], ids=["8x1", "uneven"])
@pytest.mark.parametrize("rule", [None, "sum", "ortho", Means], ids=["joint", "sum", "ortho", "memory"])
@pytest.mark.parametrize("build", [models.bert, models.llama], ids=["bert", "llama"])
def test_a_loop(build: Any, rule: Any, cuts: tuple[int, ...]) -> None:
    def run(cuts: tuple[int, ...]) -> Run:
        return Loop(build, rule=rule() if rule is Means else rule, cuts=cuts).run()

    whole = run((8,))
    assert rule is None or whole.conflicts
    assert_same_run(run(cuts), whole)


@METHODS
def test_the_planner(tmp_path: Path, method: Any) -> None:
    """Three tasks of four rows: every row alone, against all in one micro-batch."""
    whole = trainer_run(tmp_path / "whole", method, mixing={"layout": "mixed", "micro_batches": 1})
    cut = trainer_of(tmp_path / "cut", method, mixing={"layout": "mixed", "micro_batches": 12})
    found = train(cut)
    assert cut.tokens[2] == 12 * cut.state.global_step
    assert_same_run(found, whole)


def test_the_halves_of_a_step(tmp_path: Path) -> None:
    """They are the sampler's: by length the rows come in another order."""
    method = Method("balanced-signal", "balanced-signal")
    whole = trainer_run(tmp_path / "whole", method, mixing={"layout": "mixed", "micro_batches": 1})
    cut = trainer_run(tmp_path / "cut", method, mixing={"layout": "by-length", "micro_batches": 12})
    assert_same_run(cut, whole)


@METHODS
def test_the_trainers_own_accumulation(tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer_run(tmp_path / "whole", method, mixing={"layout": "mixed", "micro_batches": 1})
    accumulating = functools.partial(TrainingArguments, gradient_accumulation_steps=12)
    monkeypatch.setattr(arguments, "TrainingArguments", accumulating)
    cut = trainer_of(tmp_path / "cut", method, mixing={"layout": "mixed"})
    found = train(cut)
    assert cut.tokens[2] == 12 * cut.state.global_step
    assert_same_run(found, whole)
