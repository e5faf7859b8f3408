"""A backward that runs later than its forward: after its batch, or inside another one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same, oracle

IDS, OTHER = torch.tensor([0, 1, 1, 0]), torch.tensor([2, 2, 1, 1])

both = pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])


class Nested(nn.Module):
    """A checkpoint inside a checkpoint, once it is switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.on = nn.Linear(5, 6), nn.Linear(6, 4), False

    def forward(self, x: Tensor) -> Tensor:
        def outer(x: Tensor) -> Tensor:
            return torch.tanh(checkpoint(self.first, x, use_reentrant=True) if self.on else self.first(x))

        return self.second(checkpoint(outer, x.requires_grad_(), use_reentrant=True) if self.on else outer(x))


def nested(rows: int, tokens: int) -> models.Sample:
    model = models.peft(Nested(), ["first", "second"])
    return models.Sample(model, {"x": torch.randn(rows, tokens, 5)}, torch.randn(rows, tokens, 4))


def dora_llama(rows: int, tokens: int) -> models.Sample:
    return models.llama(rows, tokens, use_dora=True)


BUILDS = {
    "plain": models.llama,
    "non-reentrant": models.llama,
    "reentrant": models.llama,
    "nested": nested,
    "task-pure": models.embedding,
    "task-pure, reentrant": dora_llama,
}


def attach(kind: str, model: Any, fused: bool = True, **options: Any) -> OrthoLora:
    """Switch the checkpoints on (`autograd.grad`, and with it the oracle, does not work with reentrant ones)."""
    if kind == "nested":
        model.base_model.model.on = True
    elif "reentrant" in kind:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": kind != "non-reentrant"})
        model.enable_input_require_grads()
    return OrthoLora(model, ["a", "b", "c"], fused=fused, **options)


builds = pytest.mark.parametrize("kind", BUILDS)


def ids_of(kind: str) -> tuple[Any, Any]:
    return (0, 2) if kind.startswith("task-pure") else (IDS, OTHER)


@both
@builds
@pytest.mark.parametrize("order", ["first, second", "second, first", "inside the second"])
def test_the_backward_of_an_earlier_batch(kind: str, fused: bool, order: str) -> None:
    sample = BUILDS[kind](4, 3)
    one, two = ids_of(kind)
    half = sample.rows(slice(0, 2)) if isinstance(one, int) else sample
    expected = oracle(sample.fork(), [(half, one), (sample, two)], 3)
    # A model is tried out on the gradients of its own batch, and in the last order they come later.
    ortho = attach(kind, sample.model, fused, try_out=order != "inside the second")

    def loss(part: models.Sample) -> Tensor:
        return models.token_losses(sample.model, part).mean()

    with ortho.batch(one):
        first = loss(half)
    with ortho.batch(two):
        second = loss(sample)
        for which in {"first, second": [first, second], "second, first": [second, first]}.get(order, [first]):
            which.backward()
    if order == "inside the second":
        second.backward()  # after its batch
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


@both
@builds
def test_a_backward_after_its_batch(kind: str, fused: bool) -> None:
    sample = BUILDS[kind](4, 3)
    ids, _ = ids_of(kind)
    expected = oracle(sample.fork(), [(sample, ids)], 3)
    ortho = attach(kind, sample.model, fused)
    with ortho.batch(ids):
        loss = models.token_losses(sample.model, sample).mean()
    loss.backward()
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


@both
@builds
def test_a_forward_outside_any_batch(kind: str, fused: bool) -> None:
    sample = BUILDS[kind](4, 3)
    ortho = attach(kind, sample.model, fused)
    loss = models.token_losses(sample.model, sample).mean()
    with ortho.batch(0), pytest.raises(CaptureError, match="without task ids"):
        loss.backward()


@both
@builds
def test_one_backward_over_two_batches(kind: str, fused: bool) -> None:
    """A product of its own knows its batch; what is recomputed or taken whole does not."""
    sample = BUILDS[kind](4, 3)
    one, two = ids_of(kind)
    expected = oracle(sample.fork(), [(sample, one), (sample, two)], 3)
    ortho = attach(kind, sample.model, fused)
    with ortho.batch(one):
        first = models.token_losses(sample.model, sample).mean()
    with ortho.batch(two):
        loss = first + models.token_losses(sample.model, sample).mean()
        if kind in ("plain", "non-reentrant"):
            loss.backward()
            assert_same(ortho.task_gradients(), expected)
        else:
            with pytest.raises(CaptureError, match=r"several micro-batches(?s:.*)once for each"):
                loss.backward()


@pytest.mark.parametrize("kind", ["task-pure", "task-pure, reentrant"])
def test_one_backward_over_two_batches_of_one_task(kind: str) -> None:
    sample = BUILDS[kind](4, 3)
    expected = oracle(sample.fork(), [(sample, 1), (sample, 1)], 3)
    ortho = attach(kind, sample.model)
    with ortho.batch(1):
        first = models.token_losses(sample.model, sample).mean()
    with ortho.batch(1):
        (first + models.token_losses(sample.model, sample).mean()).backward()
    assert_same(ortho.task_gradients(), expected)


@pytest.mark.parametrize("kind", ["task-pure", "reentrant"])
def test_called_past_the_wrapper(kind: str) -> None:
    """`model.get_base_model()(...)` goes past the forward of the PEFT model."""
    sample = BUILDS[kind](4, 3)
    one, two = ids_of(kind)
    expected = oracle(sample.fork(), [(sample, one), (sample, two)], 3)
    ortho = attach(kind, sample.model)
    inner = models.Sample(sample.model.get_base_model(), sample.inputs, sample.target)
    with ortho.batch(one):
        first = models.token_losses(inner.model, inner).mean()
    with ortho.batch(two):
        second = models.token_losses(inner.model, inner).mean()
        first.backward()
        second.backward()
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


def test_detached_models_carry_no_marks() -> None:
    sample = models.llama(4, 3)
    before = {name: dict(m._forward_hooks) for name, m in sample.model.named_modules()}
    ortho = OrthoLora(sample.model, ["a", "b"])
    assert sample.model._forward_hooks
    ortho.detach()
    assert {name: dict(m._forward_hooks) for name, m in sample.model.named_modules()} == before
