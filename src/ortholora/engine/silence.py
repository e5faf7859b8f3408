"""Silence is a bug: checks that no gradient of a LoRA matrix passes by unseen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.layers import Matrix
from ortholora.engine.sharded import local, part_of
from ortholora.errors import CaptureError, RuleError

#: Relative difference allowed between `.grad` and the sum of the task gradients (bf16 accumulation rounds).
TOLERANCE = 0.05

#: Wrappers that copy the model or own `.grad`, by class name (importing them here would be a dependency).
REFUSED_WRAPPERS = {
    "DataParallel": "it copies the modules for every forward; use DistributedDataParallel",
    "DeepSpeedEngine": "DeepSpeed owns the gradients; use DDP or a single process",
    "FullyShardedDataParallel": "FSDP1 moves gradients into flat parameters; use FSDP2 (fully_shard), DDP or a "
    "single process",
}


def refuse_wrappers(model: nn.Module) -> None:
    """Refuse models whose gradients the engine could not write.

    Raises:
        CaptureError: The model, or a part of it, is wrapped in DataParallel, DeepSpeed or FSDP1.
    """
    for module in model.modules():
        name = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in REFUSED_WRAPPERS), None)
        if name is not None:
            raise CaptureError(
                f"{name} is not supported",
                expected="a plain PEFT model, one wrapped in DistributedDataParallel, or one after fully_shard (FSDP2)",
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
            if not group.touched[row] and gradient is not None and bool(local(gradient).any()):
                raise _unseen(matrix, "a gradient, but no task gradient")


def check_unused(groups: Sequence[ShapeGroup]) -> None:
    """A matrix that ran in this step must have got a task gradient.

    Raises:
        CaptureError: Names the first matrix whose layer's output reached no loss.
    """
    for group in groups:
        for row, matrix in enumerate(group.matrices):
            if group.ran[row] and not group.touched[row]:
                raise CaptureError(
                    f"{matrix.name} ran in this step but got no gradient: it would never train",
                    expected="a loss that depends on the output of every layer with a trainable LoRA matrix",
                    found=f"the output of {matrix.layer} reached no loss (an unused pooler, say)",
                    todo="leave the module out of `target_modules` (or list it in `exclude_modules`)",
                )


def check_same_matrices(attached: Sequence[Matrix], present: Sequence[Matrix]) -> None:
    """No matrix may have become trainable since OrthoLora was built.

    Raises:
        CaptureError: An adapter was added, activated or unfrozen since; it would train jointly, in silence.
    """
    new = sorted({m.name for m in present} - {m.name for m in attached})
    if new:
        raise CaptureError(
            f"{new[0]} was added or activated after OrthoLora was built ({len(new)} such matrices)",
            expected=f"the {len(attached)} matrices that were trainable then",
            found=f"{len(present)} trainable matrices",
            todo="call ortho.detach() and build OrthoLora anew after add_adapter / set_adapter",
        )


def check_weights(gram: Tensor, weights: Tensor, rule: object) -> None:
    """A finite Gram must give finite weights. (A step that overflowed may have neither: a scaler skips it.)

    Raises:
        RuleError: The rule returned NaN or infinite weights.
    """
    if not bool(weights.isfinite().all()) and bool(gram.isfinite().all()):
        raise RuleError(
            f"The rule {rule!r} returned NaN or infinite weights",
            expected="finite weights for finite gradients",
            found=f"{int((~weights.isfinite()).sum())} of {weights.numel()} not finite",
            todo="guard its divisions: the gradient of an absent task, and of every A in the first step, is zero",
        )


def check_capture_is_complete(groups: Sequence[ShapeGroup]) -> None:
    """The task gradients of every matrix must add up to its `.grad`.

    Catches a layer that computes with the raw weight beside the captured product, a `.grad` that was not
    zeroed, and gradients written by somebody else. Called in the first steps and then now and again.

    Raises:
        CaptureError: Names the matrix and both norms.
    """
    for group in groups:
        total = group.buffer.sum(1, dtype=torch.float32)
        for row, matrix in enumerate(group.matrices):
            gradient = matrix.parameter.grad
            if group.touched[row] and gradient is not None:
                size = float(group.buffer[row].norm())
                expected = part_of(total[row].view(group.shape), matrix.parameter)
                _compare(matrix, local(gradient).to(total.device).float(), expected, size)


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
        todo="zero the gradients before the step, call ortho.discard() where you skip a step, and resolve() before "
        "unscaling or clipping; if its layer uses the raw weight or a fused kernel, switch "
        "that off or leave the module out of `target_modules`",
    )
