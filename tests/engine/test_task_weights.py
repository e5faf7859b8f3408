"""A task's weight under rules that balance: its share, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora
from ortholora.engine.rules import RULES

from . import _models as models
from ._asserts import gradients, oracle

IDS = torch.tensor([0, 1, 2, 0, 1, 1, 2])
BALANCING = [name for name, rule in RULES.items() if getattr(rule, "scale_free_per_task", False)]


def written(rule: str, weights: list[float], entering: list[float] | None = None, tasks: str = "abc") -> Any:
    """What a step writes when tasks enter the loss with some weights, and the engine is told of others."""
    torch.manual_seed(3)
    sample = models.bert(len(IDS), 3)
    ids = IDS.clamp_max(len(tasks) - 1)
    raw = oracle(sample.fork(), [(sample, ids)], len(tasks))
    ortho = OrthoLora(sample.model, list(tasks), rule=rule, weights=weights)
    factors = torch.tensor(weights if entering is None else entering)
    with ortho.batch(ids):
        losses = torch.stack(models.task_losses(models.token_losses(sample.model, sample), ids, len(tasks)))
        (factors * losses).sum().backward()
    stats = ortho.resolve(losses=(losses.detach(), torch.ones(len(tasks))))
    return gradients(sample.model), raw, stats


def test_there_are_rules_that_balance() -> None:
    assert {"balanced", "balanced-ortho", "gradnorm", "famo", "db-mtl"} <= set(BALANCING)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 4.0], [0.5, 2.0, 1.0]])
def test_balanced_gives_each_task_its_share(weights: list[float]) -> None:
    found, raw, stats = written("balanced", weights)
    assert not bool(stats.removed.any())
    for name, g in raw.items():
        units = [g[t] / g[t].norm() for t in range(3)]
        length = sum(w * float(g[t].norm()) for t, w in enumerate(weights)) / 3  # of the gradients with their weights
        expected = sum(w / (sum(weights) / 3) * length * unit for w, unit in zip(weights, units, strict=True))
        assert isinstance(expected, Tensor)
        assert float((found[name] - expected).norm()) <= 1e-3 * float(expected.norm())


@pytest.mark.parametrize("rule", BALANCING)
def test_a_weight_counts_and_the_size_of_a_loss_does_not(rule: str) -> None:
    weights = [1.0, 1.0, 5.0]
    plain, heavier = written(rule, [1.0, 1.0, 1.0])[0], written(rule, weights)[0]
    # A rule that divides by losses keeps what enters beside them.
    louder = heavier if rule == "famo" else written(rule, weights, entering=[1000.0, 1.0, 5.0])[0]
    moved = 0
    for name, g in heavier.items():
        direction = g / g.norm()
        moved += float((direction - plain[name] / plain[name].norm()).norm()) > 0.1
        assert float((direction - louder[name] / louder[name].norm()).norm()) < 1e-3, name
    assert moved > len(heavier) / 2


@pytest.mark.parametrize("rule", BALANCING)
def test_equal_weights_and_single_tasks_are_left_alone(rule: str) -> None:
    equal, none = written(rule, [2.0, 2.0, 2.0])[0], written(rule, [1.0, 1.0, 1.0], entering=[2.0, 2.0, 2.0])[0]
    assert all(torch.equal(g, none[name]) for name, g in equal.items())
    found, raw, _ = written(rule, [3.0], tasks="a")
    for name, g in raw.items():
        assert float((found[name] - 3 * g[0]).norm()) <= 1e-4 * float(3 * g[0].norm())


@pytest.mark.parametrize("rule", ["sum", "ortho", "famo"])
def test_other_rules_see_weights_in_the_gradients_alone(rule: str) -> None:
    told, not_told = written(rule, [1.0, 1.0, 5.0])[0], written(rule, [1.0] * 3, entering=[1.0, 1.0, 5.0])[0]
    assert all(torch.equal(g, not_told[name]) for name, g in told.items())


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, -1.0], [1.0, 2.0, float("nan")]])
def test_what_is_no_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights should be 3 finite numbers"):
        written("balanced", weights)
