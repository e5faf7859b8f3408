"""Law 11 at its edges: small shares of other rows, branches that lead nowhere, layers that differentiate themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same, oracle, run_step

IDS = torch.tensor([0, 1, 2, 1])


def sample_of(base: nn.Module, targets: list[str]) -> models.Sample:
    return models.Sample(models.peft(base, targets), {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 6))


class Leaks(nn.Module):
    """A little of one row goes into all others, as where a norm or a scale is taken over the whole batch."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.inner, self.out, self.row = nn.Linear(5, 6), nn.Linear(6, 6), row

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        return self.out(hidden + 0.003 * hidden[self.row])


@pytest.mark.parametrize("row", range(4))
def test_a_small_share_of_another_row_is_refused(row: int) -> None:
    """Whichever row it is: codes differ in size, and one run alone would drown it in the row with the largest."""
    sample = sample_of(Leaks(row), ["inner", "out"])
    ortho = OrthoLora(sample.model, ["a", "b", "c"])
    with pytest.raises(CaptureError, match=r"inner\.lora_[AB].* cannot be split by row \(no other"):
        run_step(ortho, sample.model, [(sample, IDS)])


class HalfInVain(nn.Module):
    """A layer that runs twice, and whose second output nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.inner(x))
        return self.out(hidden), torch.tanh(self.inner(hidden))


def test_a_call_whose_output_nobody_takes_is_no_offence() -> None:
    sample = sample_of(HalfInVain(), ["inner", "out"])
    expected = oracle(sample.fork(), [(sample, IDS)], 3)
    ortho = OrthoLora(sample.model, ["a", "b", "c"])
    run_step(ortho, sample.model, [(sample, IDS)])
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


class Reversible(torch.autograd.Function):
    """Recomputes a layer in its backward and differentiates it there, as Reformer's layers do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(delta)
        return x.grad, None


class Reversed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 6)])
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.layers[0](x))
        for layer in list(self.layers)[1:]:
            hidden = Reversible.apply(hidden, layer) if self.on else layer(hidden)
        return hidden


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
def test_layers_that_call_backward_in_their_backward(fused: bool) -> None:
    """Theirs is no loss to look at, and the marks of the backward around it must stay."""
    sample = sample_of(Reversed(), ["layers.0", "layers.1", "layers.2"])
    expected = oracle(sample.fork(), [(sample, IDS)], 3)
    sample.model.base_model.model.on = True
    ortho = OrthoLora(sample.model, ["a", "b", "c"], fused=fused)
    run_step(ortho, sample.model, [(sample, IDS)])
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()
