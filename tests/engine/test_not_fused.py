"""Where the fused path would differ from PEFT, the general path is taken, and the summary says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from ortholora.engine import OrthoLora

from . import _models as models
from ._asserts import assert_same, oracle, run_step
from ._one_layer import fused_layers, layer_of, one

IDS = torch.tensor([0, 1, 1, 0])


def freeze_a(model: nn.Module) -> None:
    for name, parameter in models.lora_parameters(model).items():
        parameter.requires_grad_("lora_B" in name)


def second_adapter(model: Any) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules=["layer"]))
    model.base_model.set_adapter(["default", "second"])
    models.draw_lora(model)


def special_base(model: Any) -> None:
    layer_of(model).base_layer.__class__ = type("Linear4bit", (nn.Linear,), {})


def offloaded(model: Any) -> None:
    base = layer_of(model).base_layer
    base.forward = lambda x: type(base).forward(base, x)


NOT_FUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "frozen A": (freeze_a, "not one adapter"),
    "two adapters": (second_adapter, "not one adapter"),
    "another base": (special_base, "its base is a Linear4bit"),
    "trainable base": (lambda m: layer_of(m).base_layer.weight.requires_grad_(), "its base is a Linear"),
    "trainable bias": (lambda m: layer_of(m).base_layer.bias.requires_grad_(), "its base is a Linear"),
    "offloaded": (offloaded, "its base is a Linear"),
    "8-bit floats": (lambda m: layer_of(m).base_layer.to(torch.float8_e4m3fn), "its base is a Linear"),
    "a hook": (lambda m: layer_of(m).base_layer.register_forward_hook(lambda *_: None), "a hook watches"),
    "a hook on A": (lambda m: layer_of(m).lora_A["default"].register_forward_hook(lambda *_: None), "a hook watches"),
    "another dropout": (lambda m: layer_of(m).lora_dropout.update({"default": nn.AlphaDropout(0.0)}), "its dropout"),
}


@pytest.mark.parametrize("case", NOT_FUSED)
def test_general_path_where_fused_would_differ(case: str) -> None:
    change, why = NOT_FUSED[case]
    model = one(5, 6)
    change(model)
    runs = case != "8-bit floats"
    sample = models.Sample(model, {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 6))
    expected = oracle(model, [(sample, IDS)], 2) if runs else {}
    ortho = OrthoLora(model, ["a", "b"])
    assert fused_layers(model) == 0
    assert why in ortho.summary()
    if runs:
        run_step(ortho, model, [(sample, IDS)])
        assert_same(ortho.task_gradients(), expected)


def test_lora_bias_takes_the_general_path() -> None:
    model = one(5, 6, lora_bias=True)
    assert "general path: 1 layers (lora_bias)" in OrthoLora(model, ["a", "b"]).summary()


def test_variants_are_not_fused() -> None:
    ortho = OrthoLora(one(5, 6, use_dora=True), ["a", "b"])
    assert "0 layers fused, 0 by the general path" in ortho.summary()
    assert "layer.lora_A.default.weight and 1 more (the variant DoraLinearVariant" in ortho.summary()
    assert "plain joint gradient: base_model.model.layer.lora_magnitude_vector" in ortho.summary()
    assert len(ortho.summary().splitlines()) == 3
