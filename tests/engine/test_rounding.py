"""bfloat16 buffers under many micro-batches: close to float32, without a drift, and without a false alarm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ortholora.engine import OrthoLora
from ortholora.engine.rounding import add

from . import _models as models
from ._asserts import assert_same, gradients, oracle, run_step

IDS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8], ids=lambda n: f"every {n}")
@pytest.mark.parametrize("additions", [8, 64, 256])
@pytest.mark.parametrize("kind", ["equal", "random size", "random"])
def test_a_sum_in_bfloat16_does_not_drift(kind: str, additions: int, stride: int) -> None:
    """Some are added for one task, and the next for another one: each sees a part of the thresholds."""
    first = torch.randn(500, generator=torch.Generator().manual_seed(1))
    target, exact = torch.zeros(500, dtype=torch.bfloat16), torch.zeros(500, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    for i in range(additions):
        value = first * torch.rand(500, generator=generator) if kind == "random size" else first
        value = torch.randn(500, generator=generator) if kind == "random" else value
        add(target, value, i * stride)
        exact += value.double()
    error = (target.double() - exact).norm() / exact.norm()
    assert error < 0.03  # what unbiased rounding of random signs leaves; equal ones stay far below
    if kind == "equal":
        assert error < 0.02
        assert abs(float((target.double() / exact).mean()) - 1) < 0.01  # no drift to one side: 7 % before


def test_infinite_and_missing_numbers_stay() -> None:
    target = torch.zeros(4, dtype=torch.bfloat16)
    add(target, torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0]), 7)
    assert target[:3].isinf().tolist() == [True, True, False]
    assert bool(target[2].isnan())
    quiet = torch.tensor([2**31 - 1], dtype=torch.int32).view(torch.float32)  # a GPU's NaN
    add(target[:1], quiet, 1)
    assert bool(target[0].isnan())


def one_pass(rows: int, tokens: int) -> models.Sample:
    return models.stack(rows, tokens, [5, 6])


@pytest.mark.parametrize(
    ("build", "ids"),
    [(one_pass, 1), (one_pass, IDS), (one_pass, torch.tensor([0, 1, 2, 0])), (models.dora, 1)],
    ids=["one task", "some tasks", "all tasks", "task-pure"],
)
def test_many_micro_batches_in_bfloat16(build: Any, ids: Any) -> None:
    sample = build(4, 2)
    count = 150
    expected = {name: count * g for name, g in oracle(sample.fork(), [(sample, ids)], 3).items()}
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule="sum", buffer_dtype=torch.bfloat16)
    run_step(ortho, sample.model, [(sample, ids)] * count)
    joint = gradients(sample.model)
    assert_same(ortho.task_gradients(), expected, 0.01)
    ortho.resolve()  # a checked step: no false alarm
    assert_same(gradients(sample.model), joint, 0.01)


def test_every_step_is_rounded_alike() -> None:
    """A resumed run begins to count anew, so an uninterrupted one must, too."""
    sample = one_pass(4, 2)
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule="sum", buffer_dtype=torch.bfloat16)
    steps = []
    for _ in range(2):
        run_step(ortho, sample.model, [(sample, IDS)] * 7)
        steps.append({name: g.clone() for name, g in ortho.task_gradients().items()})
        ortho.resolve()
        sample.model.zero_grad()
    for name, gradient in steps[0].items():
        assert torch.equal(gradient, steps[1][name])
