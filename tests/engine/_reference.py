"""The slow, obvious twin of the engine: the oracle of every fast path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def task_gradients(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Compute `g_t = ∇L_t` by T separate `autograd.grad` calls.

    Args:
        losses: T scalar losses.
        parameters: The matrices.

    Returns:
        One `[T, *shape]` for each parameter; zeros where a loss does not depend on it.
    """
    per_task = []
    for i, loss in enumerate(losses):
        last = i == len(losses) - 1
        per_task.append(torch.autograd.grad(loss, parameters, retain_graph=not last, allow_unused=True))
    return [
        torch.stack([torch.zeros_like(p) if g[k] is None else g[k] for g in per_task]) for k, p in enumerate(parameters)
    ]


def ortho(gradients: Tensor, order: Tensor) -> Tensor:
    """Transcribe the four lines of Ortho-LoRA (arXiv 2601.09684) for one matrix, literally.

    Args:
        gradients: `[T, *shape]`.
        order: `[T, T - 1]`: the order in which task i visits the others.

    Returns:
        The matrix's gradient `[*shape]`.
    """
    flat = gradients.double().flatten(1)
    total = torch.zeros_like(flat[0])
    for i in range(len(flat)):
        h = flat[i].clone()
        for j in order[i].tolist():
            dot = h @ flat[j]
            if dot < 0:
                h -= dot / (flat[j] @ flat[j]) * flat[j]
        total += h
    return total.reshape(gradients.shape[1:]).to(gradients.dtype)
