"""The stage before the Gram: task gradients may be transformed, element by element, by a rule that wants to see them.

The order of a step is reduce → precondition → Gram → rule → write. What the stage returns takes the place of the task
gradients in the Gram and in the sum that is written. The buffers themselves keep the captured gradients.

The task gradients are reduced whole on every rank for it, as for running means: every rank then holds the same complete
state, and any rank's `state_dict()` is that of the run. Memory beside the preconditioner's state: `4 · T · (trainable
LoRA elements)` bytes while a step is resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ortholora.engine.buffers import ShapeGroup
from ortholora.errors import RuleError


class Preconditioner(Protocol):
    """What a rule's attribute `precondition` must be able to do."""

    def transform(self, index: int, gradients: Tensor, present: Tensor, step: int) -> Tensor:
        """Transform the task gradients of all matrices of one shape. Called once a step for every shape.

        It is not called in a step that overflowed (which GradScaler skips): state stays as it was.

        Args:
            index: Which shape it is, counted from 0, the same in every step and in a resumed run. Key state by it.
            gradients: `[n, T, numel]` float32, whole matrices, the same on all ranks. Not to be changed in place.
            present: `[T]` bool on the CPU. The gradients of absent tasks are zero, and must stay so.
            step: Optimizer steps resolved before this one.

        Returns:
            `[n, T, numel]` float32 on the same device.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state across steps, in copies."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken."""
        ...


def preconditioner_of(rule: object) -> Preconditioner | None:
    """The rule's `precondition`, or None.

    Raises:
        ValueError: It lacks a method, or the rule also asks for running means, which are those of raw gradients.
    """
    found: Preconditioner | None = getattr(rule, "precondition", None)
    if found is None:
        return None
    needed = ("transform", "state_dict", "load_state_dict")
    missing = [name for name in needed if not callable(getattr(found, name, None))]
    if missing:
        raise ValueError(f"A rule's `precondition` should have {', '.join(missing)}. Found {found!r}.")
    if getattr(rule, "memory", None) is not None:
        raise ValueError(f"A rule should have `memory` or `precondition`. Found both on {rule!r}.")
    return found


def preconditioned(
    preconditioner: Preconditioner, groups: Sequence[ShapeGroup], present: Tensor, step: int
) -> list[Tensor]:
    """What the Gram is taken over: `[n, T, numel]` for each shape group.

    Args:
        preconditioner: The rule's.
        groups: The shape groups, reduced whole.
        present: `[T]` bool on the CPU, tasks with rows in this step.
        step: Optimizer steps resolved before this one.

    Raises:
        RuleError: What came back has another shape, dtype or device.
    """
    buffers = [group.buffer for group in groups]
    # All ranks hold the same sums, so they agree without asking. One synchronisation with an accelerator.
    sums = torch.stack([buffer.sum(dtype=torch.float32).to(buffers[0].device) for buffer in buffers])
    if not bool(sums.isfinite().all()):
        return buffers
    return [_checked(preconditioner, i, buffer.float(), present, step) for i, buffer in enumerate(buffers)]


def _checked(preconditioner: Preconditioner, index: int, gradients: Tensor, present: Tensor, step: int) -> Tensor:
    result = preconditioner.transform(index, gradients, present, step)
    wanted, found = ((list(t.shape), t.dtype, t.device) for t in (gradients, result))
    if found != wanted:
        raise RuleError(
            f"The preconditioner {preconditioner!r} returned something else than task gradients",
            expected=f"shape {wanted[0]}, {wanted[1]} on {wanted[2]}",
            found=f"shape {found[0]}, {found[1]} on {found[2]}",
            todo="correct its `transform`; docs/rules.md shows one",
        )
    return result
