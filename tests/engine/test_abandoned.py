"""A step that was begun and given up: what it captured must not enter the next one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same, oracle, run_step

IDS = torch.tensor([0, 1, 0, 1])

zeroings = pytest.mark.parametrize("to_none", [True, False], ids=["to None", "to zero"])
builds = pytest.mark.parametrize("build", [models.bert, models.embedding], ids=["one pass", "task-pure"])


class OutOfMemoryError(RuntimeError):
    """Stands for what a device raises."""


def unchecked(ortho: OrthoLora, monkeypatch: pytest.MonkeyPatch) -> OrthoLora:
    """An OrthoLora past its checked steps."""
    monkeypatch.setattr(OrthoLora, "_check_due", lambda self: False)
    return ortho


def parts_of(sample: models.Sample, build: Any) -> list[Any]:
    if build is models.embedding:
        return [(sample.rows(slice(0, 2)), 0), (sample.rows(slice(2, 4)), 1)]
    return [(sample, IDS), (sample.rows(slice(0, 3)), IDS[:3])]


@builds
@zeroings
@pytest.mark.parametrize("given_up", [1, 2], ids=["after one micro-batch", "after two"])
def test_a_step_that_was_skipped(build: Any, to_none: bool, given_up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite, say: zero the gradients, go on."""
    sample = build(4, 3)
    parts = parts_of(sample, build)
    expected = oracle(sample.fork(), parts, 3)
    ortho = unchecked(OrthoLora(sample.model, ["a", "b", "c"]), monkeypatch)
    run_step(ortho, sample.model, [*parts, (sample, 2)][-given_up:])
    sample.model.zero_grad(set_to_none=to_none)
    with pytest.warns(UserWarning, match="zeroed without resolve"):
        run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), expected)
    stats = ortho.resolve()
    assert stats.present.tolist() == [True, True, False]


class FailsOnce(torch.autograd.Function):
    """The identity, whose first backward runs out of memory."""

    left = 1

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        if FailsOnce.left:
            FailsOnce.left -= 1
            raise OutOfMemoryError
        return delta


class Fragile(nn.Module):
    """Two layers; between them the backward fails once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(FailsOnce.apply(torch.tanh(self.first(x))))


def fragile() -> models.Sample:
    FailsOnce.left = 0
    model = models.peft(Fragile(), ["first", "second"])
    return models.Sample(model, {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 4))


def fail(ortho: OrthoLora, sample: models.Sample) -> None:
    FailsOnce.left = 1
    with pytest.raises(OutOfMemoryError):
        run_step(ortho, sample.model, [(sample, IDS)])
    FailsOnce.left = 0


@zeroings
@pytest.mark.parametrize("before", [0, 1], ids=["the first micro-batch", "the second"])
def test_a_backward_that_failed(to_none: bool, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = fragile()
    parts = [(sample, IDS)]
    expected = oracle(sample.fork(), parts, 2)
    ortho = unchecked(OrthoLora(sample.model, ["a", "b"]), monkeypatch)
    run_step(ortho, sample.model, parts * before)
    fail(ortho, sample)
    sample.model.zero_grad(set_to_none=to_none)
    with pytest.warns(UserWarning, match="zeroed without resolve"):
        run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


@pytest.mark.parametrize("go_on", [True, False], ids=["another micro-batch", "at once"])
def test_a_step_with_half_a_backward_is_not_resolved(go_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = fragile()
    ortho = unchecked(OrthoLora(sample.model, ["a", "b"]), monkeypatch)
    run_step(ortho, sample.model, [(sample, IDS)])
    fail(ortho, sample)
    if go_on:
        run_step(ortho, sample.model, [(sample, IDS)])
    with pytest.raises(CaptureError, match=r"(?s:.*)backward of this step did not come to its end(?s:.*)discard"):
        ortho.resolve()
    ortho.discard()
    sample.model.zero_grad()
    run_step(ortho, sample.model, [(sample, IDS)])
    ortho.resolve()


class Failing:
    """A forward hook that runs out of memory."""

    on = True

    def __call__(self, *_: Any) -> None:
        if self.on:
            raise OutOfMemoryError


def test_a_forward_that_failed_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain training may go on without that micro-batch; so may we."""
    sample = fragile()
    expected = oracle(sample.fork(), [(sample, IDS)] * 2, 2)
    ortho = unchecked(OrthoLora(sample.model, ["a", "b"]), monkeypatch)
    run_step(ortho, sample.model, [(sample, IDS)])
    sample.model.register_forward_hook(fail_at_the_end := Failing())
    with pytest.raises(OutOfMemoryError):
        run_step(ortho, sample.model, [(sample, IDS)])
    fail_at_the_end.on = False
    run_step(ortho, sample.model, [(sample, IDS)])
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


def test_gradients_zeroed_inside_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too late to forget what came before: this batch may have added to it."""
    sample = models.bert(4, 3)
    expected = oracle(sample.fork(), [(sample, IDS)], 2)
    ortho = unchecked(OrthoLora(sample.model, ["a", "b"]), monkeypatch)

    def step() -> None:
        with ortho.batch(IDS):
            sample.model.zero_grad()
            models.token_losses(sample.model, sample).mean().backward()

    step()
    step()
    with pytest.raises(CaptureError, match=r"zeroed inside(?s:.*)before the batch"):
        ortho.resolve()
    ortho.discard()
    step()
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()
    step()  # the usual order: nothing was waiting
    ortho.resolve()


@pytest.mark.parametrize("change", [lambda g: g.mul_(2), lambda g: g.clamp_(-1, 1)], ids=["scaled", "clipped"])
def test_gradients_changed_between_micro_batches_are_not_zeroed(change: Callable[[Tensor], Any]) -> None:
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, IDS)])
    for parameter in models.lora_parameters(sample.model).values():
        change(parameter.grad)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_step(ortho, sample.model, [(sample, IDS)])


def test_no_look_at_values_in_an_ordinary_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator that would wait for it."""
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"])
    looks: list[int] = []
    monkeypatch.setattr("ortholora.engine.abandoned._is_zero", lambda _: looks.append(1))
    for _ in range(2):
        run_step(ortho, sample.model, [(sample, IDS)] * 3)
        ortho.resolve()
        sample.model.zero_grad(set_to_none=False)
    assert not looks
