"""The marks that tell a backward's micro-batch: on every form of output, on parts of a model, and not for ever."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same

TASKS = ["a", "b", "c"]


@dataclasses.dataclass
class Output:
    hidden: Tensor


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda t: t,
    "tuple": lambda t: (None, t),
    "list": lambda t: [t],
    "dict": lambda t: {"hidden": t},
    "ordered": lambda t: collections.OrderedDict(hidden=(t,)),
    "data class": Output,
}


def tensor_in(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Output):
        return output.hidden
    return tensor_in(list(output.values() if isinstance(output, dict) else output)[-1])


class Blocks(nn.Module):
    """An encoder of two layers that may be recomputed, whose output comes in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.reentrant = form, False
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])

    def run_block(self, number: int, x: Tensor) -> Tensor:
        block = self.blocks[number]
        return torch.tanh(checkpoint(block, x, use_reentrant=True) if self.reentrant else block(x))

    def forward(self, x: Tensor) -> Any:
        return FORMS[self.form](self.run_block(1, self.run_block(0, x)))


class Model(nn.Module):
    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.encoder = Blocks(form)

    def forward(self, x: Tensor) -> Any:
        return self.encoder(x)


def build(form: str = "tensor") -> tuple[Any, Blocks, Tensor]:
    """A model with LoRA, its encoder, and an input that needs a gradient, as reentrant checkpoints want it."""
    model: Any = models.peft(Model(form), ["blocks.0", "blocks.1"])
    return model, model.base_model.model.encoder, torch.randn(2, 3, 5, requires_grad=True)


def expected_of(model: Any, x: Tensor, *tasks: int) -> dict[str, Tensor]:
    """One row less for each micro-batch, so that no two are alike."""
    copied = models.copy.deepcopy(model)
    parameters = models.lora_parameters(copied)
    found = {name: torch.zeros(len(TASKS), *p.shape) for name, p in parameters.items()}
    for number, task in enumerate(tasks):
        loss = tensor_in(copied(x[number:])).square().sum()
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            found[name][task] += gradient
    return found


def late(ortho: OrthoLora, call: Callable[[Tensor], Any], x: Tensor) -> None:
    """The backward of a batch of task 0 inside of one of task 2."""
    with ortho.batch(0):
        first = tensor_in(call(x)).square().sum()
    with ortho.batch(2):
        second = tensor_in(call(x[1:])).square().sum()
        first.backward()
        second.backward()


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_every_form_are_marked(form: str) -> None:
    model, encoder, x = build(form)
    expected = expected_of(model, x, 0, 2)
    encoder.reentrant = True
    ortho = OrthoLora(model, TASKS)
    late(ortho, model, x)
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


def test_an_encoder_that_is_called_by_itself() -> None:
    """As trainers do that want hidden states and no logits."""
    model, encoder, x = build()
    expected = expected_of(model, x, 0, 2)
    encoder.reentrant = True
    ortho = OrthoLora(model, TASKS)
    late(ortho, encoder, x)
    assert_same(ortho.task_gradients(), expected)


@pytest.mark.parametrize("when", ["late", "in its batch"])
def test_recomputed_blocks_that_are_called_by_themselves_are_refused(when: str) -> None:
    model, encoder, x = build()
    encoder.reentrant = True
    ortho = OrthoLora(model, TASKS)

    def in_its_batch() -> None:
        with ortho.batch(0):
            encoder.run_block(1, x).sum().backward()

    with pytest.raises(CaptureError, match=r"nobody knows the micro-batch(?s:.*)call the whole model"):
        late(ortho, lambda x: encoder.run_block(1, x), x) if when == "late" else in_its_batch()


def test_blocks_without_recomputation_may_be_called_by_themselves() -> None:
    model, encoder, x = build()
    expected = expected_of(model, x, 0, 2)
    ortho = OrthoLora(model, TASKS)
    late(ortho, lambda x: encoder.run_block(1, encoder.run_block(0, x)), x)
    assert_same(ortho.task_gradients(), expected)


@pytest.mark.parametrize("when", ["after", "inside"])
def test_non_reentrant_checkpoints_of_blocks_by_themselves(when: str) -> None:
    """Recomputed after the batch they would be other calls than those they recompute: said by us, not by torch."""
    model, encoder, x = build()
    ortho = OrthoLora(model, TASKS)
    with ortho.batch(0):
        loss = checkpoint(encoder.blocks[0], x, use_reentrant=False).sum()
        if when == "inside":
            loss.backward()
    if when == "inside":
        assert all(bool(g[0].any()) for g in ortho.task_gradients().values())
    else:
        with pytest.raises(CaptureError, match=r"blocks\.0\.lora_[AB].* without task ids"):
            loss.backward()


def test_an_embedding_that_is_called_by_itself() -> None:
    """Its gradient is taken whole, so its layer carries a mark of its own."""
    sample = models.embedding(2, 3)
    words = sample.model.get_base_model().words
    one, two = sample.inputs["input_ids"], sample.inputs["input_ids"].flip(0)[:1]
    ortho = OrthoLora(sample.model, TASKS)
    with ortho.batch(0):
        first = words(one).sum()
    with ortho.batch(2):
        first.backward()
        words(two).sum().backward()
    gradients = ortho.task_gradients()
    assert all(bool(g[0].any()) and bool(g[2].any()) and not bool(g[1].any()) for g in gradients.values())


def test_a_forward_after_a_backward_that_failed_belongs_to_the_open_batch() -> None:
    model, _, x = build()
    expected = expected_of(model, x, 2)
    ortho = OrthoLora(model, TASKS)
    with ortho.batch(0):
        first = model(x)
    first.register_hook(lambda _: 1 / 0)  # after the mark, before any matrix
    with ortho.batch(2):
        with pytest.raises(ZeroDivisionError):
            first.sum().backward()
        model(x).square().sum().backward()
    assert_same(ortho.task_gradients(), expected)


class ReturnsAParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 5), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.scale


def test_marks_do_not_gather_on_parameters() -> None:
    model: Any = models.peft(ReturnsAParameter(), ["layer"])
    scale = model.get_base_model().scale.requires_grad_()
    ortho = OrthoLora(model, TASKS)
    for _ in range(3):
        with ortho.batch(0):
            model(torch.randn(2, 5))[0].sum().backward()
    assert not scale._backward_hooks
