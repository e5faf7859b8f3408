"""Law 8 for optimizers: one that holds other parameters than the model is found out."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks as hooks

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_gradients, gradients, joint_step, run_step
from .test_attached_too_early import step, through_meta


@pytest.fixture
def sample() -> models.Sample:
    return models.stack(4, 3, [5, 6, 4])


def test_an_optimizer_that_was_built_before(sample: models.Sample) -> None:
    """OrthoLora replaces no parameter, so an optimizer may be older."""
    original = sample.fork()
    optimizer = torch.optim.AdamW([p for p in sample.model.parameters() if p.requires_grad], lr=1e-2)
    ortho = OrthoLora(sample.model, ["a", "b"], rule="sum")
    sample.model.to(torch.float64).to(torch.float32)
    before = {name: p.detach().clone() for name, p in models.lora_parameters(sample.model).items()}
    for _ in range(3):
        step(ortho, sample)
        joint_step(original, [(sample, 0), (sample, 1)])
        assert_gradients(sample.model, gradients(original))
        optimizer.step()
        optimizer.zero_grad()
        original.load_state_dict(sample.model.state_dict())
        original.zero_grad()
    assert all(not torch.equal(before[n], p) for n, p in models.lora_parameters(sample.model).items())


@pytest.mark.parametrize("build", [models.bert, models.embedding], ids=["one pass", "task-pure"])
def test_an_optimizer_that_holds_parameters_from_before_a_move(build: Any) -> None:
    """LoRA would never train, and the loss would hardly tell."""
    sample = build(4, 3)
    optimizer = torch.optim.SGD([p for p in sample.model.parameters() if p.requires_grad], lr=0.1)
    ortho = OrthoLora(sample.model, ["a", "b"])
    through_meta(sample.model)
    step(ortho, sample)
    optimizer.step()
    sample.model.zero_grad()
    run_step(ortho, sample.model, [(sample, 0), (sample, 1)])
    with pytest.raises(CaptureError, match=r"lora_\w+\.default(\.weight)? would never train(?s:.*)build the optimizer"):
        ortho.resolve()
    ortho.discard()
    sample.model.zero_grad()
    optimizer = torch.optim.SGD([p for p in sample.model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the way out
        step(ortho, sample)
        optimizer.step()
        optimizer.zero_grad()


def test_an_optimizer_without_any_matrix(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    head = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    step(ortho, sample)
    optimizer.step()
    sample.model.zero_grad()
    message = r"none holds .*layers\.0\.lora_A\.default\.weight or any other LoRA matrix"
    with pytest.warns(UserWarning, match=message) as said:
        step(ortho, sample)
    assert said[0].filename == step.__code__.co_filename  # where resolve() was called
    sample.model.zero_grad()
    optimizer.step()
    step(ortho, sample)  # once is enough


def test_optimizers_that_take_turns_are_no_false_alarm(sample: models.Sample) -> None:
    of_a, of_b = (
        torch.optim.SGD([p for n, p in models.lora_parameters(sample.model).items() if mark in n], lr=0.1)
        for mark in ("lora_A", "lora_B")
    )
    ortho = OrthoLora(sample.model, ["a", "b"])
    for optimizer in (of_a, of_b, of_a):
        step(ortho, sample)
        optimizer.step()
        sample.model.zero_grad()
    step(ortho, sample)


def test_another_optimizer_alone_is_no_false_alarm(sample: models.Sample) -> None:
    own = torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=0.1)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    ortho = OrthoLora(sample.model, ["a", "b"])
    for optimizers in ((own, other), (other,), (own,)):  # in the second step a GradScaler skipped its own
        step(ortho, sample)
        for optimizer in optimizers:
            optimizer.step()
        sample.model.zero_grad()
    step(ortho, sample)


def test_no_hook_outlives_its_owner(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    first = ortho._attachment._watch._hook.id
    assert first in hooks
    ortho.detach()
    assert first not in hooks
    ortho = OrthoLora(sample.model, ["a", "b"])
    second = ortho._attachment._watch._hook.id
    assert second in hooks
    del ortho
    sample.model = nn.Identity()  # the captured layers, which refer to it, go with their model
    gc.collect()
    assert second not in hooks
