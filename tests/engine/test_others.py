"""Another adapter of the model that is trained in the middle of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import run_step

IDS = torch.tensor([0, 1, 1, 0])


def two_adapters(add: bool = True) -> models.Sample:
    sample = models.stack(4, 3, [5, 6])
    if add:
        sample.model.add_adapter("second", LoraConfig(r=2, target_modules=["layers.0"]))
    return sample


def train_second(sample: models.Sample, optimizer: bool) -> None:
    """As somebody would who knows nothing of us: switch, train, switch back."""
    model: Any = sample.model
    if "second" not in model.peft_config:
        model.add_adapter("second", LoraConfig(r=2, target_modules=["layers.0"]))
    model.set_adapter("second")
    models.token_losses(model, sample).mean().backward()
    if optimizer:
        second = [p for name, p in model.named_parameters() if "second" in name]
        descent = torch.optim.SGD(second, lr=0.1)
        descent.step()
        descent.zero_grad()
    model.set_adapter("default")


@pytest.mark.parametrize("add", [True, False], ids=["there before", "added"])
@pytest.mark.parametrize("optimizer", [True, False], ids=["stepped", "a gradient only"])
def test_another_adapter_between_batch_and_resolve(optimizer: bool, add: bool) -> None:
    sample = two_adapters(add)
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    message = r"lora_[AB]\.second is trained in the middle of a step(?s:.*)after resolve\(\)"

    def go_on() -> None:
        train_second(sample, optimizer)
        ortho.resolve()

    with pytest.raises(CaptureError, match=message):
        go_on()


def test_another_adapter_inside_the_batch() -> None:
    sample = two_adapters()
    ortho = OrthoLora(sample.model, ["a", "b"])
    with ortho.batch(IDS):
        models.token_losses(sample.model, sample).mean().backward()
        train_second(sample, optimizer=False)
    with pytest.raises(CaptureError, match=r"second is trained in the middle of a step"):
        ortho.resolve()


@pytest.mark.parametrize("steps", [1, 4])
def test_turn_by_turn_is_nobody_s_business(steps: int) -> None:
    sample = two_adapters()
    ortho = OrthoLora(sample.model, ["a", "b"])
    optimizer = torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=0.01)
    for _ in range(steps):
        run_step(ortho, sample.model, [(sample, IDS)])
        ortho.resolve()
        optimizer.step()
        optimizer.zero_grad()
        train_second(sample, optimizer=True)


def test_an_old_gradient_of_another_adapter() -> None:
    """It was there before the step, and nobody touched it."""
    sample = two_adapters()
    train_second(sample, optimizer=False)
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    ortho.resolve()


def test_an_old_gradient_of_another_adapter_that_grows() -> None:
    """The tensor is the same, and its numbers are not."""
    sample = two_adapters()
    train_second(sample, optimizer=False)
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    train_second(sample, optimizer=False)
    with pytest.raises(CaptureError, match=r"second is trained in the middle of a step"):
        ortho.resolve()


def test_an_adapter_that_came_beside_other_ones() -> None:
    sample = two_adapters()
    ortho = OrthoLora(sample.model, ["a", "b"])
    model: Any = sample.model
    model.add_adapter("third", LoraConfig(r=2, target_modules=["layers.0"]))
    run_step(ortho, model, [(sample, IDS)])
    model.set_adapter("third")
    models.token_losses(model, sample).mean().backward()
    model.set_adapter("default")
    with pytest.raises(CaptureError, match=r"third is trained in the middle of a step"):
        ortho.resolve()
