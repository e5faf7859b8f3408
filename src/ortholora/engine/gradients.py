"""Where the gradients of captured matrices are read and written: `.grad`, or what DeepSpeed has made of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.sharded import local, part_of
from ortholora.engine.zero import is_owned, overwrite, reduced


def gradient_of(parameter: Tensor) -> Tensor | None:
    """`.grad`; with ZeRO the mean that its parts make up, which is a collective."""
    return reduced(parameter) if is_owned(parameter) else parameter.grad


def write_group(group: ShapeGroup, rows: Tensor) -> None:
    """Write `rows [n, numel]` as the gradient of every touched matrix; a missing `.grad` is set."""
    gradients: list[Tensor] = []
    values: list[Tensor] = []
    for touched, matrix, value in zip(group.touched, group.matrices, rows.view(-1, *group.shape).unbind(), strict=True):
        if not touched:
            continue
        parameter = matrix.parameter
        if is_owned(parameter):
            overwrite(parameter, value)
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        gradients.append(local(parameter.grad))
        values.append(part_of(value, parameter))
    if gradients:
        torch._foreach_copy_(gradients, values)
