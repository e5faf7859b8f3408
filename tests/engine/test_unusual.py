"""Calls and modules that no Function can stand in for: refused by name, or run as PEFT runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, weight_norm

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_close, assert_same, oracle, run_step
from ._one_layer import layer_of, one

IDS = torch.tensor([0, 1, 1, 0])
NAME = r"layer\.lora_[AB]\.default\.weight"

both = pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])


@both
@pytest.mark.parametrize("inside", [True, False], ids=["in a batch", "outside"])
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_of_torch_func(transform: str, inside: bool, fused: bool) -> None:
    model = one(5, 6)
    ortho = OrthoLora(model, ["a", "b"], fused=fused)
    x = torch.randn(4, 3, 5)

    def call() -> Any:
        if transform == "grad":
            return torch.func.grad(lambda x: model(x).sum())(x)
        if transform == "vmap":
            return torch.func.vmap(model)(x)
        return torch.func.jvp(model, (x,), (x,))

    message = NAME + r"(?s:.*)torch\.func(?s:.*)ortho\.detach\(\)"
    if inside:
        with ortho.batch(IDS), pytest.raises(CaptureError, match=message):
            call()
    else:
        with pytest.raises(CaptureError, match=message):
            call()
    model.eval()
    call()  # outside of a batch, in eval mode: PEFT's own
    ortho.detach()
    model.train()
    call()


@both
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_jagged_tensors(fused: bool) -> None:
    model = one(5, 6)
    ortho = OrthoLora(model, ["a", "b"], fused=fused)
    x = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)], layout=torch.jagged)
    with ortho.batch(torch.tensor([0, 1])), pytest.raises(CaptureError, match=NAME + r"(?s:.*)jagged(?s:.*)packed"):
        model(x)


@pytest.mark.parametrize("how", ["parametrize", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
def test_a_parametrised_matrix(how: str) -> None:
    model = one(5, 6)
    matrix = layer_of(model).lora_A["default"]
    parametrizations.weight_norm(matrix) if how == "parametrize" else weight_norm(matrix)
    with pytest.raises(CaptureError, match=r"lora_A\.default\.weight is no parameter(?s:.*)remove_parametrizations"):
        OrthoLora(model, ["a", "b"])


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(5, 6), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x).mT).mT


def test_a_batch_norm_without_running_statistics() -> None:
    """It uses the batch's own in eval mode, too."""
    model = models.peft(Normed(nn.BatchNorm1d(6, track_running_stats=False)), ["layer"]).eval()
    ortho = OrthoLora(model, ["a", "b"])
    with pytest.raises(CaptureError, match=r"norm mixes the rows(?s:.*)without running statistics"), ortho.batch(IDS):
        pass
    sample = models.Sample(model, {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 6))
    run_step(ortho, model, [(sample, 1)])
    ortho.resolve()


class FunctionalNorm(nn.Module):
    """Statistics of the batch, without a module that one could find."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(5, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.batch_norm(self.layer(x).mT, None, None, training=True).mT)


def test_the_function_batch_norm_is_found_by_trying() -> None:
    model = models.peft(FunctionalNorm(), ["layer", "out"])
    sample = models.Sample(model, {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 6))
    expected = oracle(sample.fork(), [(sample, 0), (sample, 1)], 2)
    ortho = OrthoLora(model, ["a", "b"])
    with pytest.raises(CaptureError, match=r"layer\.lora_A\.default\.weight cannot be split by row"):
        run_step(ortho, model, [(sample, IDS)])
    ortho.discard()
    model.zero_grad()
    run_step(ortho, model, [(sample, 0), (sample, 1)])
    assert_same(ortho.task_gradients(), expected)


@both
def test_global_module_hooks_are_called(fused: bool) -> None:
    model = one(5, 6)
    sample = models.Sample(model, {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 6))
    expected = oracle(sample.fork(), [(sample, IDS)], 2)
    ortho = OrthoLora(model, ["a", "b"], fused=fused, try_out=False)  # the trial calls them, too
    called: list[str] = []
    names = {module: name.split(".")[-1] for name, module in model.named_modules()}
    handle = register_module_forward_hook(lambda module, *_: called.append(names.get(module, "")))
    try:
        run_step(ortho, model, [(sample, IDS)])
    finally:
        handle.remove()
    assert called.count("base_layer") == 1
    assert called.count("default") >= 2
    assert_same(ortho.task_gradients(), expected)


@both
def test_autocast_leaves_float64_alone(fused: bool) -> None:
    model = one(5, 6).double()
    original = one(5, 6).double()
    original.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    ortho = OrthoLora(model, ["a", "b"], fused=fused)
    with torch.autocast("cpu", torch.bfloat16):
        expected = original(x)
        with ortho.batch(IDS):
            found = model(x)
            found.square().sum().backward()
        expected.square().sum().backward()
    assert found.dtype == torch.float64
    assert_close(found.detach(), expected.detach(), 1e-12)
    for name, parameter in models.lora_parameters(original).items():
        assert_close(ortho.task_gradients()[name].sum(0), parameter.grad, 1e-6)
