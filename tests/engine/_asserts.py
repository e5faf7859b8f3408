"""One function per property."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora

from . import _reference as reference
from ._models import Sample, lora_parameters, task_losses, token_losses

#: float32 products of a few dozen terms in another order: a few units in the last place (6e-8 each).
FLOAT32 = 2e-5

#: bf16 keeps 8 bits: each product is rounded by up to 2^-9 = 0.2 %, and the gradient passes a handful of
#: them on its way down; a task's rows are also rounded alone where the joint product rounds once.
BFLOAT16 = 3e-2


def oracle(model: nn.Module, parts: Sequence[tuple[Sample, Any]], tasks: int) -> dict[str, Tensor]:
    """Task gradients of one step by T separate `autograd.grad` calls per micro-batch; name → `[T, *shape]`."""
    parameters = lora_parameters(model)
    total: list[Tensor] | None = None
    for sample, ids in parts:
        losses = task_losses(token_losses(model, sample), ids, tasks)
        gradients = reference.task_gradients(losses, list(parameters.values()))
        total = gradients if total is None else [a + b for a, b in zip(total, gradients, strict=True)]
    assert total is not None
    return dict(zip(parameters, total, strict=True))


def run_step(ortho: OrthoLora, model: nn.Module, parts: Sequence[tuple[Sample, Any]]) -> None:
    """Forward and backward of all micro-batches of a step, as a user would write them."""
    for sample, ids in parts:
        with ortho.batch(ids):
            sum(task_losses(token_losses(model, sample), ids, len(ortho.tasks))).backward()  # type: ignore[union-attr]


def joint_step(model: nn.Module, parts: Sequence[tuple[Sample, Any]]) -> None:
    """The same step without us: plain backward."""
    for sample, _ in parts:
        (token_losses(model, sample).sum() / sample.target[..., 0].numel()).backward()


def assert_close(found: Tensor, expected: Tensor, tolerance: float = FLOAT32, what: str = "") -> None:
    """`‖found − expected‖ ≤ tolerance · ‖expected‖`."""
    assert found.shape == expected.shape, f"{what}: {found.shape} against {expected.shape}"
    difference, size = float((found.double() - expected.double()).norm()), float(expected.double().norm())
    assert difference <= tolerance * size + 1e-30, f"{what}: {difference:.2e} apart, size {size:.2e}"


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = FLOAT32) -> None:
    """Two mappings of tensors agree, name by name; `expected` must not be trivially zero."""
    assert found.keys() == expected.keys()
    assert any(bool(t.any()) for t in expected.values()), "the oracle is zero: the test proves nothing"
    for name, tensor in expected.items():
        assert_close(found[name], tensor, tolerance, name)


def assert_capture_is_exact(
    sample: Sample,
    parts: Sequence[tuple[Sample, Any]],
    tasks: int,
    tolerance: float = FLOAT32,
    prepare: Any = None,
    try_out: bool = True,
) -> None:
    """Captured task gradients equal T separate `autograd.grad` calls on a copy that was never attached.

    Once by the general path, and once fused where the layers allow it.

    Args:
        sample: Holds the model.
        parts: Micro-batches with their task ids.
        tasks: T.
        tolerance: Relative.
        prepare: Called with the captured model (not with the oracle's): checkpointing, say.
        try_out: See `OrthoLora`.
    """
    models = {False: sample.fork(), True: sample.model}
    torch.manual_seed(7)  # the same dropout masks in all forwards
    expected = oracle(sample.fork(), parts, tasks)
    for fused, model in models.items():
        if prepare is not None:
            prepare(model)
        ortho = OrthoLora(model, [f"task{t}" for t in range(tasks)], fused=fused, try_out=try_out)
        assert fused or "0 layers fused" in ortho.summary()
        torch.manual_seed(7)
        run_step(ortho, model, parts)
        assert_same(ortho.task_gradients(), expected, tolerance)
        ortho.resolve()  # the completeness check of law 8 must agree


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Name → `.grad` of every LoRA matrix."""
    return {name: p.grad.clone() for name, p in lora_parameters(model).items() if p.grad is not None}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Name → value of every trainable parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_gradients(model: nn.Module, expected: Mapping[str, Tensor], tolerance: float = FLOAT32) -> None:
    """`.grad` of every LoRA matrix."""
    assert_same(gradients(model), expected, tolerance)
