"""What stops `OrthoTrainer` and what it leaves behind; going on from a checkpoint of an older form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

import workspaces
from ortholora.errors import NonFiniteLossError, UserError
from ortholora.models.card import ModelCard
from ortholora.models.multitask import MultiTaskModel
from ortholora.runs.run import Run
from ortholora.runs.train import train_run
from ortholora.trainers import checkpoints
from workspaces import ORTHO, TASKS


def test_a_nan_loss_names_step_and_task_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = workspaces.trainer(tmp_path)
    own = MultiTaskModel.sum_losses

    def poisoned(self: MultiTaskModel, outputs: Any, batch: Any) -> Tensor:
        losses = own(self, outputs, batch)
        return losses * torch.tensor([1.0, math.nan if trainer.state.global_step == 4 else 1.0, 1.0])

    monkeypatch.setattr(MultiTaskModel, "sum_losses", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"'pair' became nan in step 5(.|\n)*checkpoint-4"):
        trainer.train()
    kept = checkpoints.checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["checkpoint-4"]
    assert json.loads((kept[0] / "trainer_state.json").read_text())["global_step"] == 4


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = workspaces.workspace()
    from ortholora.trainers import saving as module

    save, calls = module.save_model, []

    def full(folder: Path, model: MultiTaskModel, card: ModelCard) -> None:
        calls.append(folder)
        save(folder, model, card)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_model", full)
    with pytest.raises(UserError, match=r"step 4 could not be saved(.|\n)*No space left(.|\n)*checkpoint-2"):
        train_run(Run(ORTHO, TASKS, 0, tmp_path), space)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    resumed = train_run(Run(ORTHO, TASKS, 0, tmp_path), space)
    whole = train_run(Run(ORTHO, TASKS, 0, tmp_path / "whole"), space)
    assert resumed.metrics == whole.metrics


class Leave(TrainerCallback):
    """Ends training after step 3."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_a_checkpoint_of_the_older_form_is_resumed(tmp_path: Path) -> None:
    """The tasks' losses were a pair of sums and a number of steps; the checkpoint lies between two logs."""
    training = {"steps": 4, "save_every": 3, "log_every": 2}
    whole = workspaces.trainer(tmp_path / "whole", training=training)
    whole.train()
    cut = workspaces.trainer(tmp_path / "cut", training=training)
    cut.add_callback(Leave())
    cut.train()
    path = tmp_path / "cut" / "checkpoints" / "checkpoint-3" / "ortholora_state.pt"
    state = torch.load(path, weights_only=False)
    sums, steps = state["task_losses"]["total"]
    assert steps.tolist() == [1, 1, 1]
    torch.save(state | {"task_losses": (sums, 1)}, path)
    again = workspaces.trainer(tmp_path / "cut", training=training)
    again.train(resume_from_checkpoint=str(path.parent))
    logged = [trainer.state.log_history for trainer in (whole, again)]
    expected, found = (next(e for e in entries if "loss" in e and e["step"] == 4) for entries in logged)
    for name in TASKS:
        assert found[f"loss/{name}"] == pytest.approx(expected[f"loss/{name}"], rel=1e-6)
    assert again.conflicts.report() == whole.conflicts.report()
