"""Law 8: nothing that LoRA misses passes in silence, and what should record nothing records nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_close, assert_gradients, gradients, joint_step, run_step

IDS = torch.tensor([0, 1, 0, 1])
NAME = "base_model.model.layers.0.lora_A.default.weight"


@pytest.fixture
def sample() -> models.Sample:
    return models.stack(4, 3, [5, 6, 4])


def first_a(model: nn.Module) -> nn.Linear:
    return model.get_submodule(NAME.removesuffix(".weight"))  # type: ignore[return-value]


def step(ortho: OrthoLora, sample: models.Sample, extra: Callable[[], Any] | None = None) -> None:
    with ortho.batch(IDS):
        loss = models.token_losses(sample.model, sample).mean()
        (loss if extra is None else loss + extra()).backward()


# ---- gradients that the capture does not see ---------------------------------------------------------


def test_a_raw_use_of_the_weight_beside_the_module(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    step(ortho, sample, lambda: first_a(sample.model).weight.square().sum())
    with pytest.raises(CaptureError, match=re.escape(NAME) + r"(?s:.*)leave the module out"):
        ortho.resolve()


def test_a_raw_use_of_the_weight_instead_of_the_module(sample: models.Sample) -> None:
    class Fused(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lora = self.inner
            return lora.base_layer(x) + x @ lora.lora_A["default"].weight.T @ lora.lora_B["default"].weight.T

    model = sample.model
    ortho = OrthoLora(model, ["a", "b"])
    layers = model.base_model.model.layers
    layers[0] = Fused(layers[0])
    for _ in range(4):  # in every step, not only in the first ones
        step(ortho, sample)
        with pytest.raises(CaptureError, match=re.escape(NAME)):
            ortho.resolve()
        ortho.discard()
        model.zero_grad()


def test_a_gradient_left_over_from_the_step_before(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    step(ortho, sample)
    ortho.resolve()
    step(ortho, sample)  # no zero_grad
    with pytest.raises(CaptureError, match="zero the gradients before the step"):
        ortho.resolve()


def test_tasks_whose_gradients_cancel_are_no_false_alarm(sample: models.Sample) -> None:
    """All that is left in `.grad` is rounding; it may differ from the captured rounding."""
    sample.inputs["x"] = sample.inputs["x"][:2].repeat(2, 1, 1)
    sample.target = sample.target[:2].repeat(2, 1, 1)
    order = torch.tensor([3, 0, 1, 2])  # products in another order
    sample = sample.rows(order)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])[order]
    ids = torch.tensor([0, 0, 1, 1])[order]
    ortho = OrthoLora(sample.model, ["a", "b"])
    with ortho.batch(ids):
        (models.token_losses(sample.model, sample) * sign[:, None]).sum().backward()
    for parameter in models.lora_parameters(sample.model).values():
        parameter.grad.add_(1e-7 * torch.randn_like(parameter))  # type: ignore[union-attr]
    stats = ortho.resolve()
    assert_close(stats.cosines[:, 0, 1], -torch.ones(4), 1e-4)


def test_backward_outside_batch_names_the_module(sample: models.Sample) -> None:
    OrthoLora(sample.model, ["a", "b"])
    loss = models.token_losses(sample.model, sample).mean()
    with pytest.raises(CaptureError, match=r"layers\.\d\.lora_[AB]\.default\.weight without task ids"):
        loss.backward()


def test_resolve_without_a_backward(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    with pytest.raises(CaptureError, match="found no task gradient"):
        ortho.resolve()
    with ortho.batch(IDS):
        models.token_losses(sample.model, sample)
    with pytest.raises(CaptureError, match="found no task gradient"):
        ortho.resolve()


def test_resolve_twice(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    step(ortho, sample)
    ortho.resolve()
    with pytest.raises(CaptureError, match=r"found no task gradient(?s:.*)once per step"):
        ortho.resolve()


def test_batches_do_not_nest(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    with ortho.batch(0):
        with pytest.raises(CaptureError, match="open already"), ortho.batch(1):
            pass
        models.token_losses(sample.model, sample).mean().backward()  # the outer one still counts
    assert not any(t[1].any() for t in ortho.task_gradients().values())
    assert any(t[0].any() for t in ortho.task_gradients().values())


def test_an_error_inside_a_batch_closes_it(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    with pytest.raises(KeyError), ortho.batch(0):
        raise KeyError
    step(ortho, sample)
    assert len(ortho.task_gradients()) == 4


# ---- forwards that must record nothing ---------------------------------------------------------------


def test_other_forwards_record_nothing_and_change_nothing(sample: models.Sample) -> None:
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"])
    with ortho.batch(IDS):
        with torch.no_grad():
            models.token_losses(sample.model, sample)
        with sample.model.disable_adapter():
            reference = models.token_losses(sample.model, sample)
        assert not reference.requires_grad
        assert ortho.task_gradients() == {}
        sample.model.eval()
        with torch.inference_mode():
            models.token_losses(sample.model, sample)
        sample.model.train()
        models.token_losses(sample.model, sample).mean().backward()
    with torch.no_grad():  # between backward and resolve
        models.token_losses(sample.model, sample)
    ortho.resolve()
    other = OrthoLora(original, ["a", "b"])
    with other.batch(IDS):
        models.token_losses(original, sample).mean().backward()
    other.resolve()
    assert_gradients(sample.model, gradients(original), 0.0)


@pytest.mark.parametrize("kind", ["eval", "no_grad", "disable_adapter"])
def test_outputs_outside_a_batch_are_those_of_plain_peft(sample: models.Sample, kind: str) -> None:
    original = sample.fork()
    OrthoLora(sample.model, ["a", "b"])
    outputs = []
    for model in (sample.model, original):
        if kind == "eval":
            outputs.append(models.token_losses(model.eval(), sample))
        elif kind == "no_grad":
            with torch.no_grad():
                outputs.append(models.token_losses(model, sample))
        else:
            with model.disable_adapter():  # type: ignore[operator]
                outputs.append(models.token_losses(model, sample))
    assert torch.equal(*outputs)
    if kind == "eval":
        outputs[0].mean().backward()  # a gradient of the inputs, say: not ours


def test_eval_mode_inside_a_batch_still_trains(sample: models.Sample) -> None:
    """Some train with dropout off by leaving eval mode on."""
    original = sample.fork()
    sample.model.eval()
    ortho = OrthoLora(sample.model, ["a", "b"], rule="sum")
    run_step(ortho, sample.model, [(sample, IDS)])
    ortho.resolve()
    joint_step(original, [(sample, IDS)])
    assert_gradients(sample.model, gradients(original))


# ---- parameters that were replaced after attaching ---------------------------------------------------


def reassign(model: nn.Module) -> None:
    for name, _ in list(models.lora_parameters(model).items()):
        module = model.get_submodule(name.removesuffix(".weight"))
        module.weight = nn.Parameter(module.weight.detach().clone())


@pytest.mark.parametrize(
    "change", [lambda m: m.double(), lambda m: m.to(torch.float64), reassign], ids=["double", "to", "reassigned"]
)
@pytest.mark.parametrize("build", [models.bert, models.embedding], ids=["one pass", "task-pure"])
def test_attached_before_the_parameters_change(build: Any, change: Any) -> None:
    sample = build(4, 3)
    if build is models.embedding and change is reassign:
        pure = sample.model.base_model.model.words

        def change(model: nn.Module) -> None:
            pure.lora_embedding_A["default"] = nn.Parameter(pure.lora_embedding_A["default"].detach().clone())

    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"], rule="sum")
    change(sample.model)
    parts = [(sample, 1), (sample, 0)]
    before = {n: p.detach().clone() for n, p in models.lora_parameters(sample.model).items()}
    optimizer = torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=0.1)
    run_step(ortho, sample.model, parts)
    ortho.resolve()
    joint_step(original, parts)
    assert_gradients(sample.model, gradients(original), 1e-4)
    optimizer.step()
    assert all(not torch.equal(before[n], p) for n, p in models.lora_parameters(sample.model).items())


# ---- layers that did not run, or trained unseen -------------------------------------------------------


def test_a_layer_that_did_not_run_is_left_alone(sample: models.Sample) -> None:
    """Its parameter has no gradient, and still has none after resolve."""
    sample.model.add_adapter("idle", LoraConfig(r=2, target_modules=["layers.0"]))
    ortho = OrthoLora(sample.model, ["a", "b"])
    layers = sample.model.base_model.model.layers
    layers[1] = layers[1].base_layer
    step_input = sample.inputs["x"]
    with ortho.batch(IDS):
        sample.model(step_input).square().mean().backward()
    ortho.resolve()
    assert first_a(sample.model).weight.grad is not None
    untouched = [m for m in ortho.matrices if ".1." in m.name]
    assert len(untouched) == 2
    assert all(m.parameter.grad is None for m in untouched)


def test_an_adapter_that_is_activated_later(sample: models.Sample) -> None:
    """It would train jointly; the check at the end of the step names it."""
    sample.model.add_adapter("later", LoraConfig(r=2, target_modules=["layers.0"]))
    ortho = OrthoLora(sample.model, ["a", "b"])
    sample.model.base_model.set_adapter(["default", "later"])
    step(ortho, sample)
    with pytest.raises(CaptureError, match=r"layers\.0\.lora_A\.later\.weight was added or activated after"):
        ortho.resolve()


def test_a_raw_use_that_begins_later_is_found_in_time(sample: models.Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """The completeness check comes back every `CHECK_EVERY` steps, not only in the first two."""
    monkeypatch.setattr("ortholora.engine.ortho_lora.CHECK_EVERY", 4)
    ortho = OrthoLora(sample.model, ["a", "b"])
    for _ in range(4):
        step(ortho, sample)
        ortho.resolve()
        sample.model.zero_grad()
    step(ortho, sample, extra=lambda: first_a(sample.model).weight.square().sum())
    with pytest.raises(CaptureError, match=f"{re.escape(NAME)} received a gradient that was not captured"):
        ortho.resolve()


def test_a_layer_whose_output_reaches_no_loss(sample: models.Sample) -> None:
    """An unused pooler, say: it runs and would never train."""
    ortho = OrthoLora(sample.model, ["a", "b"], try_out=False)  # for parts of a model are called here
    layers = sample.model.base_model.model.layers
    with ortho.batch(IDS):
        layers[1](layers[0](sample.inputs["x"]))
        layers[0](sample.inputs["x"]).square().mean().backward()
    with pytest.raises(CaptureError, match=r"layers\.1\.lora_A.* ran in this step but got no gradient"):
        ortho.resolve()
    ortho.discard()
    sample.model.zero_grad()
    step(ortho, sample)
    ortho.resolve()
