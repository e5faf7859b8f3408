"""Optimizers that step before `resolve()` has written the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import run_step, weights

IDS = torch.tensor([0, 1, 0, 1])
NAME = r"layers\.\d\.lora_[AB]\.default\.weight"

builds = pytest.mark.parametrize("build", [models.bert, models.embedding], ids=["one pass", "task-pure"])


def parts(sample: models.Sample) -> list[Any]:
    return [(sample, 0), (sample, 1)]


@builds
def test_an_optimizer_in_the_backward(build: Any) -> None:
    """One optimizer a parameter, stepped by a hook as soon as the gradient is there (torch's tutorial, GaLore)."""
    sample = build(4, 3)
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in models.lora_parameters(sample.model).values()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)
    ortho = OrthoLora(sample.model, ["a", "b"])
    before = weights(sample.model)
    with pytest.raises(CaptureError, match=r"lora_(?s:.*)before resolve\(\)(?s:.*)in the backward"):
        run_step(ortho, sample.model, parts(sample))
    assert all(torch.equal(before[name], p) for name, p in weights(sample.model).items())


def test_an_optimizer_of_their_own_in_the_backward() -> None:
    sample = models.stack(4, 3, [5, 6])

    def step(parameter: Tensor) -> None:
        parameter.data.sub_(parameter.grad, alpha=0.1)  # type: ignore[arg-type]
        parameter.grad = None

    for parameter in models.lora_parameters(sample.model).values():
        parameter.register_post_accumulate_grad_hook(step)
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    with pytest.raises(CaptureError, match=NAME + r"(?s:.*)hook(?s:.*)in the backward"):
        ortho.resolve()


def test_a_hook_that_only_looks_is_no_optimizer() -> None:
    sample = models.stack(4, 3, [5, 6])
    norms: list[float] = []
    for parameter in models.lora_parameters(sample.model).values():
        parameter.register_post_accumulate_grad_hook(lambda p: norms.append(float(p.grad.norm())))
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    ortho.resolve()
    assert len(norms) == 2


def test_a_step_before_resolve() -> None:
    sample = models.stack(4, 3, [5, 6])
    optimizer = torch.optim.AdamW(models.lora_parameters(sample.model).values())
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    before = weights(sample.model)
    with pytest.raises(CaptureError, match=NAME + r"(?s:.*)before resolve\(\)"):
        optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in weights(sample.model).items())
    ortho.resolve()
    optimizer.step()  # the way out


def test_other_optimizers_step_when_they_like() -> None:
    sample = models.stack(4, 3, [5, 6])
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    other(torch.ones(2)).sum().backward()
    optimizer.step()
    ortho.resolve()


@pytest.mark.parametrize("how", ["discard", "detach"])
def test_after_the_capture_is_forgotten_anybody_may_step(how: str) -> None:
    sample = models.stack(4, 3, [5, 6])
    optimizer = torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=0.1)
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    getattr(ortho, how)()
    optimizer.step()


def test_a_closure_brings_the_last_backward_and_resolve_into_the_step() -> None:
    """Lightning gives every optimizer one; the first micro-batch of two was captured before."""
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"], rule="sum")
    optimizer = torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=0.1)
    before = weights(sample.model)
    run_step(ortho, sample.model, [(sample, IDS)])

    def closure() -> float:
        run_step(ortho, sample.model, [(sample, IDS)])
        ortho.resolve()
        return 0.0

    optimizer.step(closure)
    assert not all(torch.equal(before[name], p) for name, p in weights(sample.model).items())
