"""Task weights under rules that balance: there a weight cannot act through the size of a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_weights(weights: Sequence[float] | None, tasks: int) -> Tensor | None:
    """The tasks' weights as `[T]` float32; None where they are all the same.

    Raises:
        ValueError: They are not T finite numbers of at least 0.
    """
    if weights is None:
        return None
    values = [float(weight) for weight in weights]
    if len(values) != tasks or not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"weights should be {tasks} finite numbers of at least 0. Found {values}.")
    return torch.tensor(values) if len(set(values)) > 1 else None


def weight_factors(weights: Tensor, gram: Tensor, dim: int) -> Tensor:
    """What a rule's answer is multiplied by: `w_t` over the mean weight of the tasks with a gradient in the block.

    Over the mean, so that weights shift the balance and leave the length of the update alone: a single task keeps
    its plain gradient, which carries its weight already.

    Args:
        weights: `[T]`.
        gram: `[N, S, S]`, S = T, or 2T with a memory.
        dim: 2 for weights `[N, S]`, 3 for combinations `[N, T, S]`, whose rows belong to the tasks.
    """
    count = len(weights)
    there = gram.diagonal(dim1=1, dim2=2).unflatten(1, (-1, count)).amax(1) > 0
    total = (there * weights).sum(1, keepdim=True)
    mean = total / there.sum(1, keepdim=True).clamp_min(1)
    of_task = torch.where(mean > 0, weights / torch.where(mean > 0, mean, 1.0), 1.0)
    return of_task.unsqueeze(2) if dim == 3 else of_task.repeat(1, gram.shape[1] // count)
