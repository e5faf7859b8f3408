"""LoRA over bitsandbytes layers, on the CPU: the general path, exact, and read by plain PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from ortholora.engine import OrthoLora

from . import _kinds as kinds
from ._asserts import BFLOAT16, FLOAT32, assert_capture_is_exact, assert_close
from .test_every_lora import outputs, parts_of, train

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

KIND = kinds.Kind(lambda: quantised(8), fused=False)
WIDTH = 64  # a block of bitsandbytes' 4-bit formats


class Quantised(nn.Module):
    """Two quantised layers, marked as transformers marks a model that it loaded quantised."""

    def __init__(self, bits: int, dtype: torch.dtype, **config: Any) -> None:
        super().__init__()
        self.is_loaded_in_8bit, self.is_loaded_in_4bit = bits == 8, bits == 4
        self.layers = nn.ModuleList(self._layer(bits, dtype, **config) for _ in range(2))

    @staticmethod
    def _layer(bits: int, dtype: torch.dtype, **config: Any) -> nn.Module:
        if bits == 8:
            layer = bnb.nn.Linear8bitLt(WIDTH, WIDTH, has_fp16_weights=False)
        else:
            layer = bnb.nn.Linear4bit(WIDTH, WIDTH, compute_dtype=dtype, **config)
        layer.load_state_dict({"weight": torch.randn(WIDTH, WIDTH) / 8, "bias": torch.randn(WIDTH)})
        return layer

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def quantised(bits: int, dtype: torch.dtype = torch.float32, **config: Any) -> kinds.Case:
    base = Quantised(bits, dtype, **config).to("cpu")  # quantises
    assert not any(layer.weight.dtype.is_floating_point for layer in base.layers)
    inputs = {"x": torch.randn(kinds.ROWS, kinds.TOKENS, WIDTH).to(dtype)}
    target = torch.randn(kinds.ROWS, kinds.TOKENS, WIDTH)
    return kinds.adapt(base, inputs, target, target_modules=["layers.0", "layers.1"])


FORMATS: dict[str, dict[str, Any]] = {
    "8-bit": {"bits": 8},
    "4-bit nf4": {"bits": 4, "quant_type": "nf4"},
    "4-bit fp4": {"bits": 4, "quant_type": "fp4"},
    "4-bit, nested": {"bits": 4, "quant_type": "nf4", "compress_statistics": True},
}

every_format = pytest.mark.parametrize("config", FORMATS.values(), ids=FORMATS.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@every_format
@dtypes
def test_capture_is_exact(config: dict[str, Any], dtype: torch.dtype) -> None:
    case = quantised(dtype=dtype, **config)
    summary = OrthoLora(case.sample.fork(), ["a", "b"]).summary()
    assert "4 LoRA matrices in one pass: 0 layers fused, 2 by the general path" in summary
    assert "general path: 2 layers (a lora.bnb.Linear" in summary
    assert_capture_is_exact(case.sample, parts_of(case, KIND), 3, FLOAT32 if dtype == torch.float32 else BFLOAT16)


@every_format
def test_trained_and_read_by_plain_peft(config: dict[str, Any], tmp_path: Path) -> None:
    case = quantised(**config)
    model = case.sample.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    # On a copy: on CPUs with AVX512-BF16 a 4-bit layer that ran in eval mode stays repacked, and trains no more.
    start = outputs(copy.deepcopy(model), case.sample)
    train(case, KIND)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    trained = outputs(model, case.sample)
    assert not torch.allclose(trained, start, rtol=1e-3)
    model.save_pretrained(tmp_path)
    assert_close(outputs(PeftModel.from_pretrained(case.bare, tmp_path), case.sample), trained, 1e-5)
