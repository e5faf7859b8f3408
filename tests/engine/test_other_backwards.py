"""Backwards whose gradients do not go to `.grad` are no part of the step: `torch.autograd.grad`, `inputs=`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_close, assert_gradients, assert_same, gradients, oracle

IDS = torch.tensor([0, 1, 1, 0])

both = pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])


def plain(rows: int, tokens: int) -> models.Sample:
    return models.stack(rows, tokens, [5, 6, 4])


def pure(rows: int, tokens: int) -> models.Sample:
    return models.dora(rows, tokens)


def run(ortho: OrthoLora, sample: models.Sample, ids: Any, look: Any) -> Any:
    """A step in which something else is differentiated before the loss."""
    with ortho.batch(ids):
        losses = models.token_losses(sample.model, sample)
        seen = look(losses.mean())
        losses.mean().backward()
    return seen


@both
@pytest.mark.parametrize("build", [plain, pure], ids=["one pass", "task-pure"])
@pytest.mark.parametrize("step", [1, 3], ids=["checked", "not checked"])
def test_the_gradient_of_an_input(fused: bool, build: Any, step: int) -> None:
    """Adversarial training, saliency, logging: `autograd.grad(loss, x)` runs through every layer."""
    sample = build(4, 3)
    x = sample.inputs["x"].requires_grad_()
    ids = IDS if build is plain else 1
    original = sample.fork()
    expected = oracle(original, [(sample, ids)], 2)
    d_x = torch.autograd.grad(models.token_losses(original, sample).mean(), x)[0]
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    for _ in range(step):
        sample.model.zero_grad()
        found = run(ortho, sample, ids, lambda loss: torch.autograd.grad(loss, x, retain_graph=True)[0])
        assert_close(found, d_x)
        assert_same(ortho.task_gradients(), expected)
        ortho.resolve()


@both
@pytest.mark.parametrize("build", [plain, pure], ids=["one pass", "task-pure"])
def test_the_gradient_of_a_matrix_for_the_caller(fused: bool, build: Any) -> None:
    sample = build(4, 3)
    ids = IDS if build is plain else 1
    original = sample.fork()
    expected = oracle(original, [(sample, ids)], 2)
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    matrices = list(models.lora_parameters(sample.model).values())
    seen = run(ortho, sample, ids, lambda loss: torch.autograd.grad(loss, matrices, retain_graph=True))
    for found, wanted in zip(seen, expected.values(), strict=True):
        assert_close(found, wanted.sum(0))
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


@both
def test_a_backward_into_some_parameters_only(fused: bool) -> None:
    """`loss.backward(inputs=...)`: what it leaves out is not captured, what it takes is."""
    sample = plain(4, 3)
    original = sample.fork()
    expected = oracle(original, [(sample, IDS)], 2)
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    names = [name for name in expected if "layers.1" in name]
    with ortho.batch(IDS):
        loss = models.token_losses(sample.model, sample).mean()
        loss.backward(inputs=[sample.model.get_parameter(name) for name in names], retain_graph=True)
        assert_same(ortho.task_gradients(), {name: expected[name] for name in names})
        others = [name for name in expected if name not in names]
        loss.backward(inputs=[sample.model.get_parameter(name) for name in others])
    assert_same(dict(sorted(ortho.task_gradients().items())), dict(sorted(expected.items())))
    ortho.resolve()


@both
def test_two_backwards_over_one_graph_count_twice(fused: bool) -> None:
    sample = plain(4, 3)
    original = sample.fork()
    expected = {name: 2 * g for name, g in oracle(original, [(sample, IDS)], 2).items()}
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    run(ortho, sample, IDS, lambda loss: loss.backward(retain_graph=True))
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


@both
def test_a_gradient_penalty_is_refused_by_name(fused: bool) -> None:
    """What it adds to the gradients of the matrices comes by another way than the layers' products."""
    sample = plain(4, 3)
    x = sample.inputs["x"].requires_grad_()
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    with ortho.batch(IDS):
        loss = models.token_losses(sample.model, sample).mean()
        (d_x,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(CaptureError, match=r"layers\.\d\.lora_[AB](?s:.*)once more(?s:.*)create_graph"):
            (loss + d_x.square().sum()).backward()


@both
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
def test_create_graph_without_a_second_backward_is_an_ordinary_step(fused: bool) -> None:
    sample = plain(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"], rule="sum", fused=fused)
    with ortho.batch(IDS):
        models.token_losses(sample.model, sample).mean().backward(create_graph=True)
    assert_same(ortho.task_gradients(), oracle(original, [(sample, IDS)], 2))
    ortho.resolve()
    models.token_losses(original, sample).mean().backward()
    for parameter in models.lora_parameters(sample.model).values():
        parameter.grad = parameter.grad.detach()  # type: ignore[union-attr]
    assert_gradients(sample.model, gradients(original))


class Twin(nn.Module):
    """A model whose penalty needs no second derivative of the adapted layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


@both
def test_a_penalty_above_the_adapted_layers_is_theirs(fused: bool) -> None:
    """The gradient of a hidden state, differentiated once more: it enters the layers below as any loss does."""
    model = models.peft(Twin(), ["body"])
    sample = models.Sample(model, {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 4))
    kept: list[Tensor] = []

    def per_token(model: Any) -> Tensor:
        kept.clear()
        losses = models.token_losses(model, sample)
        (gradient,) = torch.autograd.grad(losses.sum(), kept[0], create_graph=True)
        return losses + gradient.square().sum(-1)

    model.base_model.model.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    original = sample.fork()
    original.base_model.model.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    parts = models.task_losses(per_token(original), IDS, 2)
    parameters = models.lora_parameters(original)
    expected = {
        name: torch.stack([torch.autograd.grad(part, p, retain_graph=True)[0] for part in parts])
        for name, p in parameters.items()
    }
    ortho = OrthoLora(model, ["a", "b"], fused=fused)
    with ortho.batch(IDS):
        (per_token(model).sum() / 12).backward()
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()
