"""Copies of an attached model: nobody is attached to them, and somebody may be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same, oracle, run_step
from ._one_layer import fused_layers

IDS = torch.tensor([0, 1, 1, 0])

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}

copies = pytest.mark.parametrize("how", COPIES)
both = pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
when = pytest.mark.parametrize("inside", [True, False], ids=["in an open batch", "between batches"])


def copied(how: str, ortho: OrthoLora, model: nn.Module, inside: bool) -> Any:
    if not inside:
        return COPIES[how](model)
    with ortho.batch(1):
        return COPIES[how](model)


@both
@copies
@when
def test_a_copy_does_not_train_in_silence(how: str, inside: bool, fused: bool) -> None:
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    other = copied(how, ortho, sample.model, inside)
    loss = models.token_losses(other, sample).mean()
    with pytest.raises(CaptureError, match=r"without task ids(?s:.*)copy of an attached model wants an OrthoLora"):
        loss.backward()
    assert not ortho.task_gradients()


@both
@copies
@when
@pytest.mark.parametrize("build", [models.bert, models.dora], ids=["one pass", "task-pure"])
def test_a_copy_can_be_attached(how: str, inside: bool, fused: bool, build: Any) -> None:
    sample = build(4, 3)
    parts = [(sample, 0), (sample, 1)]
    expected = oracle(sample.fork(), parts, 2)
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    run_step(ortho, sample.model, parts[:1])
    other = copied(how, ortho, sample.model, inside)
    second = OrthoLora(other, ["a", "b"], fused=fused)
    assert fused_layers(other) == fused_layers(sample.model)
    other.zero_grad()
    run_step(second, other, parts)
    assert_same(second.task_gradients(), expected)
    second.resolve()
    second.detach()
    assert not any("forward" in module.__dict__ for module in other.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.modules())
    run_step(ortho, sample.model, parts[1:])  # the first goes on
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


def test_a_copy_takes_no_task_gradients_along() -> None:
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, [str(t) for t in range(500)])
    before = len(pickle.dumps(sample.model))
    run_step(ortho, sample.model, [(sample, IDS)])
    sample.model.zero_grad()
    assert len(pickle.dumps(sample.model)) < 1.1 * before


def test_the_model_itself_is_not_freed_by_others() -> None:
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"])
    copy.deepcopy(sample.model)
    with pytest.raises(CaptureError, match="cannot be captured"):
        OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    ortho.resolve()
