"""What a head is made of: the units that a regression is learned in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workspaces
from ortholora.config.tasks.union import recorded
from ortholora.data.task import TaskData
from ortholora.models.heads import HeadSpec

NUMBERS = 2  # its place among the tasks of the workspace


def numbers(**settings: bool) -> TaskData:
    task = workspaces.workspace().tasks[NUMBERS]
    return type(task)(task.spec.model_copy(update=settings), task.labels, task.train, task.dev)


def test_a_regression_is_learned_in_standard_deviations() -> None:
    task = numbers()
    head, targets = HeadSpec.of(task), np.asarray(task.train.targets, dtype=np.float64)
    assert (head.shift, head.scale) == pytest.approx((targets.mean(), targets.std()))
    assert head.scale != 1


def test_or_in_the_units_of_its_targets() -> None:
    head = HeadSpec.of(numbers(standardise=False))
    assert (head.shift, head.scale) == (0.0, 1.0)
    outputs, targets = torch.tensor([[300.0], [-2.0]]), torch.tensor([400.0, -2.0])
    assert head.row_losses(outputs, targets).tolist() == [100.0**2, 0.0]
    assert head.predictions(outputs).tolist() == [300.0, -2.0]


def test_records_of_earlier_versions_did_not_hold_the_setting() -> None:
    assert "standardise" not in recorded(numbers().spec)
    assert recorded(numbers(standardise=False).spec)["standardise"] is False
