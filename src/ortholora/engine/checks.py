"""Silence is a bug: checks that no gradient of a LoRA matrix passes by unseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.gradients import gradient_of
from ortholora.engine.layers import Matrix
from ortholora.engine.sharded import local, part_of
from ortholora.errors import CaptureError, RuleError

#: Relative difference allowed between `.grad` and the sum of the task gradients (bf16 accumulation rounds).
TOLERANCE = 0.05

#: Wrappers that copy the model or own `.grad`, by class name (importing them here would be a dependency).
REFUSED_WRAPPERS = {
    "DataParallel": "it copies the modules for every forward; use DistributedDataParallel",
    "DeepSpeedEngine": "build OrthoLora on `engine.module`",
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


def check_something_captured(groups: Sequence[ShapeGroup]) -> None:
    """A step must have captured the gradient of some matrix.

    Raises:
        CaptureError: It captured none.
    """
    if not any(any(group.touched) for group in groups):
        raise CaptureError(
            "resolve() found no task gradient",
            expected="at least one backward inside `with ortho.batch(task_ids):` since the last resolve",
            found="none",
            todo="wrap forward and backward in ortho.batch(...), and call resolve() once per step",
        )


def check_gradients_were_captured(groups: Sequence[ShapeGroup]) -> None:
    """A matrix that received a gradient in this step must have been captured.

    Raises:
        CaptureError: Names the first matrix whose `.grad` is not zero although no task gradient came.
    """
    for group in groups:
        for row, matrix in enumerate(group.matrices):
            if group.touched[row]:
                continue
            gradient = gradient_of(matrix.parameter)
            # The look at the values synchronises, but only in the case that should not happen.
            if gradient is not None and bool(local(gradient).any()):
                raise _unseen(matrix, "a gradient, but no task gradient")


def check_outputs_reach_a_loss(groups: Sequence[ShapeGroup]) -> None:
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


def check_same_matrices(attached: Sequence[Matrix], search: Callable[[], Sequence[Matrix]]) -> None:
    """The matrices that train must be those that are captured.

    Args:
        attached: What was trainable when OrthoLora was built.
        search: Finds what is trainable now.

    Raises:
        CaptureError: An adapter was added, activated or unfrozen since (it would train jointly), replaced or
            frozen (it would not train), all in silence.
    """
    frozen = next((m for m in attached if not m.parameter.requires_grad), None)
    try:
        present = search()
    except CaptureError:
        if frozen is None:
            raise
        present = []  # all of them are frozen
    # By owner, not by name: a layer may have been wrapped in another module since.
    known, names = {(m.owner, m.key) for m in attached}, {m.name for m in attached}
    new = [m for m in present if (m.owner, m.key) not in known]
    if new:
        how, found = ("replaced", "another module") if new[0].name in names else ("added or activated", "a new one")
        raise _changed(
            new[0], attached, how, f"{found}, and {len(new) - 1} more such among {len(present)} trainable ones"
        )
    if frozen is not None:
        raise _changed(frozen, attached, "frozen", "one that does not require gradients now")


def _changed(matrix: Matrix, attached: Sequence[Matrix], how: str, found: str) -> CaptureError:
    return CaptureError(
        f"{matrix.name} was {how} after OrthoLora was built",
        expected=f"the {len(attached)} matrices that were trainable then",
        found=found,
        todo="call ortho.detach() and build OrthoLora anew after add_adapter, set_adapter, delete_adapter or "
        "requires_grad_",
    )


def refuse_shared_storage(matrices: Sequence[Matrix]) -> None:
    """Two parameters over one memory cannot be one block, and an optimizer would step it twice.

    Raises:
        CaptureError: Names both (PEFT's `ensure_weight_tying` makes such pairs).
    """
    seen: dict[int, Matrix] = {}
    for matrix in matrices:
        parameter = matrix.parameter
        if type(parameter) is not nn.Parameter or parameter.is_meta or parameter.data_ptr() == 0:
            continue
        other = seen.setdefault(parameter.data_ptr(), matrix)
        if other.parameter is not parameter:
            raise CaptureError(
                f"{matrix.name} shares its memory with {other.name}",
                expected="one parameter for each LoRA matrix (the very same one where layers are tied)",
                found="two parameters over one memory: two gradients that cannot be added up before the rule "
                "decides, and two optimizer steps on the same numbers",
                todo="leave `ensure_weight_tying` out of the LoraConfig, or target only one of the two modules",
            )


def batch_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that mix the rows of a batch while they train, by name."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def check_rows_are_apart(norms: Sequence[tuple[str, nn.Module]]) -> None:
    """In a mixed batch no row's loss may depend on another task's rows.

    Raises:
        CaptureError: Names the first BatchNorm that uses the batch's own statistics.
    """
    mixing = ((name, module) for name, module in norms if module.training or module.running_mean is None)
    name, module = next(mixing, (None, None))
    if module is not None:
        raise CaptureError(
            f"{name} mixes the rows of a batch: their gradients cannot be told apart by task",
            expected="task-pure micro-batches (all rows of one task), or BatchNorm in eval mode",
            found="a micro-batch of several tasks and a BatchNorm "
            + ("in training mode" if module.training else "without running statistics (in eval mode, too)"),
            todo="accumulate one micro-batch per task (ortho.batch(task_index)), or keep the module in eval mode "
            "(override train() of the model: trainers call model.train() in every step)",
        )


def check_weights_are_finite(gram: Tensor, weights: Tensor, rule: object) -> None:
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
            gradient = gradient_of(matrix.parameter) if group.touched[row] else None
            if gradient is not None:
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
