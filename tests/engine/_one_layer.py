"""A model of a single adapted layer, and whether it is fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ortholora.engine.fused import FusedLayer

from . import _models as models


class One(nn.Module):
    """A single adapted layer."""

    def __init__(self, k: int, d: int, bias: bool, transposed: bool) -> None:
        super().__init__()
        self.layer = Conv1D(d, k) if transposed else nn.Linear(k, d, bias=bias)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def one(k: int, d: int, bias: bool = True, transposed: bool = False, **config: Any) -> nn.Module:
    return models.peft(One(k, d, bias, transposed), ["layer"], fan_in_fan_out=transposed, **config)


def fused_layers(model: nn.Module) -> int:
    return sum(isinstance(module.__dict__.get("forward"), FusedLayer) for module in model.modules())


def layer_of(model: Any) -> Any:
    return model.base_model.model.layer
