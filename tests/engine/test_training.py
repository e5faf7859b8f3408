"""Law 2: `sum` is joint training, `ortho` without conflict is `sum`, and one task is plain LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ortholora.engine import Ortho, OrthoLora, Sum

from . import _models as models
from ._asserts import assert_close, assert_gradients, assert_same, gradients, joint_step, run_step, weights


def train(model: nn.Module, steps: list[list[tuple[models.Sample, Any]]], ortho: OrthoLora | None) -> dict[str, Tensor]:
    """Train several AdamW steps with clipping, as a user would; without `ortho`, joint training."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for parts in steps:
        if ortho is None:
            joint_step(model, parts)
        else:
            run_step(ortho, model, parts)
            ortho.resolve()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def steps_of(sample: models.Sample, tasks: int) -> list[list[tuple[models.Sample, Any]]]:
    rows = sample.shape[0]
    ids = [torch.randint(tasks, (rows,)) for _ in range(6)]
    return [[(sample, ids[0])], [(sample, ids[1]), (sample.rows(slice(0, 3)), ids[2][:3])]] + [
        [(sample, i)] for i in ids[3:]
    ]


def assert_trains_alike(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """Equal to what AdamW makes of rounding in tiny gradients, and every parameter moved."""
    assert_same(found, expected, 1e-4)
    assert all(not torch.equal(expected[name], value) for name, value in start.items())


@pytest.mark.parametrize("build", [models.bert, models.llama, models.gpt2], ids=["bert", "llama", "gpt2"])
def test_sum_is_joint_training_step_for_step(build: Any) -> None:
    sample = build(6, 4)
    original, start = sample.fork(), weights(sample.model)
    steps = steps_of(sample, 3)
    found = train(sample.model, steps, OrthoLora(sample.model, ["a", "b", "c"], rule="sum"))
    assert_trains_alike(found, train(original, steps, None), start)


@pytest.mark.parametrize("rule", ["ortho", "sum"])
@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_one_task_is_plain_lora_whatever_the_rule(rule: str, block: Any) -> None:
    sample = models.bert(6, 4)
    original, start = sample.fork(), weights(sample.model)
    steps = steps_of(sample, 1)
    found = train(sample.model, steps, OrthoLora(sample.model, ["only"], rule=rule, block=block))
    assert_trains_alike(found, train(original, steps, None), start)


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_ortho_without_conflict_is_sum(block: Any) -> None:
    """Tasks that share their rows agree in every matrix, whatever their sizes."""
    sample = models.bert(2, 4)
    sample.inputs = {k: v.repeat(3, 1) for k, v in sample.inputs.items()}
    sample.target = sample.target.repeat(3, 1, 1)
    other, ids = sample.fork(), torch.tensor([0, 0, 1, 1, 2, 2])
    steps = [[(sample, ids)]] * 3
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule="ortho", block=block)
    found = train(sample.model, steps, ortho)
    expected = train(other, steps, OrthoLora(other, ["a", "b", "c"], rule="sum", block=block))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ortho_differs_from_sum_where_tasks_conflict() -> None:
    """Otherwise the tests above would also pass for a rule that does nothing."""
    sample = models.bert(6, 4)
    other = sample.fork()
    parts = [(sample, torch.tensor([0, 0, 1, 1, 2, 2]))]
    stats = []
    for model, rule in ((sample.model, Ortho()), (other, Sum())):
        ortho = OrthoLora(model, ["a", "b", "c"], rule=rule)
        run_step(ortho, model, parts)
        stats.append(ortho.resolve())
    assert int(stats[0].conflict_counts.sum()) > 0
    assert any(
        not torch.allclose(a, b)
        for a, b in zip(gradients(sample.model).values(), gradients(other).values(), strict=True)
    )


def test_private_parameters_keep_their_plain_gradient() -> None:
    sample = models.bert(6, 4)
    head = sample.model.base_model.model.encoder.layer[1].output.LayerNorm.weight
    head.requires_grad_(True)
    original = sample.fork()
    parts = [(sample, torch.tensor([0, 0, 1, 1, 2, 2]))]
    ortho = OrthoLora(sample.model, ["a", "b", "c"])
    run_step(ortho, sample.model, parts)
    ortho.resolve()
    joint_step(original, parts)
    assert head.grad is not None
    assert_close(head.grad, original.base_model.model.encoder.layer[1].output.LayerNorm.weight.grad)


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_sum_writes_the_joint_gradient(block: Any) -> None:
    sample = models.bert(6, 4)
    original = sample.fork()
    parts = [(sample, torch.tensor([0, 1, 2, 0, 1, 2]))] * 2
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule="sum", block=block)
    run_step(ortho, sample.model, parts)
    ortho.resolve()
    joint_step(original, parts)
    assert_gradients(sample.model, gradients(original))
