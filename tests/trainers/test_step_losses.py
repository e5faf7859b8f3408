"""Every trainer gives the rule the losses of each whole step, whatever the cut: those that it logs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mixin import logs
from test_mixin import trainer as plain_trainer
from torch import Tensor

import workspaces
from engine.test_losses import Watching
from language import sft_trainer
from ortholora.runs.method import Method

pytestmark = pytest.mark.filterwarnings(
    "ignore:Could not find a config file:UserWarning",
    "ignore:.gradient_checkpointing.* is deprecated:FutureWarning",
)


def plain(folder: Path, accumulate: int) -> Any:
    rows = 12 // accumulate
    changes = {"logging_steps": 1, "per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulate}
    return plain_trainer(folder, max_steps=3, save_strategy="no", **changes)


def weighted() -> list[dict[str, Any]]:
    tasks = [dict(task) for task in workspaces.config().model_dump(exclude_none=True)["tasks"]]
    tasks[1]["weight"] = 3.0
    return tasks


def ortho(folder: Path, accumulate: int) -> Any:
    """Micro-batches of its own planner; a weight changes no loss."""
    mixing = {"layout": "mixed", "micro_batches": accumulate}
    return workspaces.trainer(folder, tasks=weighted(), mixing=mixing, head_dropout=0.0, training={"log_every": 1})


def sft(folder: Path, accumulate: int) -> Any:
    pytest.importorskip("trl")
    changes = {"per_device_train_batch_size": 12 // accumulate, "gradient_accumulation_steps": accumulate}
    return sft_trainer(folder, logging_strategy="steps", logging_steps=1, task_weights={"copy": 3.0}, **changes)


@pytest.mark.parametrize("make", [plain, ortho, sft])
def test_a_rule_sees_the_losses_of_the_step(make: Any, tmp_path: Path) -> None:
    of_cut: list[list[Tensor]] = []
    for accumulate in (1, 3):
        made, rule = make(tmp_path / str(accumulate), accumulate), Watching()
        made.ortho.rule = rule
        made.train()
        seen = [losses for losses in rule.seen if losses is not None]
        entries = logs(made)
        assert len(seen) == len(entries) == made.state.global_step
        for losses, entry in zip(seen, entries, strict=True):
            logged = [entry.get(f"loss/{task}", float("nan")) for task in made.ortho.tasks]
            torch.testing.assert_close(losses, torch.tensor(logged), rtol=1e-5, atol=0, equal_nan=True)
        of_cut.append(seen)
    for one, other in itertools.islice(zip(*of_cut, strict=True), 1):  # later ones differ by what a sum rounds to
        torch.testing.assert_close(one, other, rtol=1e-4, atol=0, equal_nan=True)


def test_the_trainer_tells_a_rule_that_balances_of_weights(tmp_path: Path) -> None:
    made = workspaces.trainer(tmp_path / "ortho", Method("balanced", "balanced"), tasks=weighted())
    assert made.ortho is not None
    assert made.ortho._weights is not None
    assert made.ortho._weights.tolist() == [1.0, 3.0, 1.0]


def test_the_sft_trainer_tells_a_rule_that_balances_of_weights(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    made = sft_trainer(tmp_path / "sft", rule="balanced", task_weights={"copy": 3.0})
    assert made.ortho._weights.tolist() == [3.0 if task == "copy" else 1.0 for task in made.tasks]


def test_a_run_with_gradnorm_learns_and_resumes(tmp_path: Path) -> None:
    method = Method("gradnorm", "gradnorm(alpha=0.5)")
    whole = workspaces.trainer(tmp_path / "whole", method, training={"save_every": 2})
    whole.train()
    checkpoint = sorted((tmp_path / "whole" / "checkpoints").glob("checkpoint-*"))[0]
    resumed = workspaces.trainer(tmp_path / "whole", method, training={"save_every": 2})
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.ortho is not None
    assert whole.ortho is not None
    found, expected = resumed.ortho.state_dict()["rule_state"], whole.ortho.state_dict()["rule_state"]
    assert expected["started"][1].tolist() == [whole.state.global_step] * 3
    assert all(torch.equal(a, b) for a, b in zip(found["started"], expected["started"], strict=True))
    assert all(torch.equal(w, workspaces.weights(whole)[n]) for n, w in workspaces.weights(resumed).items())
