"""`detach()` gives the model back exactly as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_gradients, gradients, joint_step, run_step

BUILDS = {"one pass": models.bert, **models.TASK_PURE}


def instance_state(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(module.__dict__) for name, module in model.named_modules()}


def hooks_of(model: nn.Module) -> int:
    on_parameters = sum(len(p._backward_hooks or ()) for p in model.parameters())
    modules = list(model.modules())
    return on_parameters + sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules
    )


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_nothing_is_left_behind(build: Any) -> None:
    sample = build(4, 3)
    original = sample.fork()
    before = instance_state(sample.model), list(sample.model.state_dict()), hooks_of(sample.model)
    ortho = OrthoLora(sample.model, ["a", "b"])
    assert list(sample.model.state_dict()) == before[1]  # nothing of ours is saved while attached, either
    parts = [(sample, 0), (sample, 1)]
    run_step(ortho, sample.model, parts)
    joint_step(original, parts)  # PEFT's MultiheadAttention moves its base weights by rounding in every forward
    original.zero_grad()
    attached = instance_state(sample.model), hooks_of(sample.model)
    assert attached != (before[0], before[2])
    ortho.resolve()
    ortho.detach()
    ortho.detach()  # harmless
    assert (instance_state(sample.model), list(sample.model.state_dict()), hooks_of(sample.model)) == before
    for name, tensor in original.state_dict().items():
        assert torch.equal(sample.model.state_dict()[name], tensor), name
    found, expected = models.token_losses(sample.model, sample), models.token_losses(original, sample)
    assert torch.equal(found, expected)
    sample.model.zero_grad()
    joint_step(sample.model, [(sample, 0)])
    joint_step(original, [(sample, 0)])
    assert_gradients(sample.model, gradients(original), 0.0)


def test_a_refused_attach_leaves_nothing_behind() -> None:
    sample = models.stack(4, 3, [5, 6, 4])
    last = [m for name, m in sample.model.named_modules() if name.endswith("lora_B.default")][-1]
    forward = last.forward
    last.forward = lambda x: forward(x)  # type: ignore[method-assign]
    before = instance_state(sample.model)
    with pytest.raises(CaptureError, match=r"layers\.1\.lora_B\.default\.weight cannot be captured"):
        OrthoLora(sample.model, ["a", "b"])
    assert instance_state(sample.model) == before


def test_attach_detach_attach() -> None:
    sample = models.bert(4, 3)
    original = sample.fork()
    for _ in range(3):
        ortho = OrthoLora(sample.model, ["a", "b"], rule="sum")
        run_step(ortho, sample.model, [(sample, torch.tensor([0, 1, 0, 1]))])
        ortho.resolve()
        found = gradients(sample.model)
        sample.model.zero_grad()
        ortho.detach()
    joint_step(original, [(sample, 0)])
    for name, gradient in gradients(original).items():
        torch.testing.assert_close(found[name], gradient)
