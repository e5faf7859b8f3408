"""Silence is a bug: checks that no gradient of a LoRA matrix passes by unseen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.layers import Matrix
from ortholora.errors import CaptureError

#: Relative difference allowed between `.grad` and the sum of the task gradients (bf16 accumulation rounds).
TOLERANCE = 0.05

#: Wrappers that copy the model or own `.grad`, by class name (importing them here would be a dependency).
REFUSED_WRAPPERS = {
    "DataParallel": "it copies the modules for every forward; use DistributedDataParallel",
    "DeepSpeedEngine": "DeepSpeed owns the gradients; use DDP or a single process",
    "FullyShardedDataParallel": "FSDP1 moves gradients into flat parameters; use DDP or a single process",
}


def refuse_wrappers(model: nn.Module) -> None:
    """Refuse models whose gradients the engine could not write.

    Raises:
        CaptureError: The model, or a part of it, is wrapped in DataParallel, DeepSpeed or FSDP1.
    """
    for module in model.modules():
        name = type(module).__name__
        if name in REFUSED_WRAPPERS:
            raise CaptureError(
                f"{name} is not supported",
                expected="a plain PEFT model, or one wrapped in DistributedDataParallel",
                found=f"a model inside {name}: {REFUSED_WRAPPERS[name]}",
                todo="build OrthoLora on the unwrapped model and train it with torchrun / accelerate (DDP)",
            )


def check_untouched(groups: Sequence[ShapeGroup]) -> None:
    """A matrix that received a gradient in this step must have been captured.

    Raises:
        CaptureError: Names the first matrix whose `.grad` is not zero although no task gradient came.
    """
    for group in groups:
        for row, matrix in enumerate(group.matrices):
            gradient = matrix.parameter.grad
            # The look at the values synchronises, but only in the case that should not happen.
            if not group.touched[row] and gradient is not None and bool(gradient.any()):
                raise _unseen(matrix, "a gradient, but no task gradient")


def check_capture_is_complete(groups: Sequence[ShapeGroup]) -> None:
    """The task gradients of every matrix must add up to its `.grad`.

    Catches a layer that computes with the raw weight beside the captured product, a `.grad` that was not
    zeroed, and gradients written by somebody else. Called in the first steps only.

    Raises:
        CaptureError: Names the matrix and both norms.
    """
    for group in groups:
        total = group.buffer.sum(1)
        for row, matrix in enumerate(group.matrices):
            gradient = matrix.parameter.grad
            if group.touched[row] and gradient is not None:
                size = float(group.buffer[row].norm())
                _compare(matrix, gradient.flatten().to(total.device).float(), total[row], size)


def _compare(matrix: Matrix, gradient: Tensor, total: Tensor, size: float) -> None:
    # Relative to the task gradients too: two that cancel leave nothing but rounding in `.grad`.
    difference, norm = float((gradient - total).norm()), float(gradient.norm())
    if difference > TOLERANCE * max(norm, size):  # False for NaN: a scaler or the loss check deals with those
        found = f"{norm:.3e} in .grad, {float(total.norm()):.3e} captured, {difference:.3e} apart"
        raise _unseen(matrix, f"gradient norms {found}")


def _unseen(matrix: Matrix, found: str) -> CaptureError:
    return CaptureError(
        f"{matrix.name} received a gradient that was not captured",
        expected="its task gradients to add up to its .grad",
        found=found,
        todo="zero the gradients before the step; if its layer uses the raw weight or a fused kernel, switch "
        "that off or leave the module out of `target_modules`",
    )
