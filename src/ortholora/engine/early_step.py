"""Optimizers that step before resolve: they would train on the plain joint gradient, in silence."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.layers import Matrix
from ortholora.engine.others import OtherAdapters, trained
from ortholora.engine.zero import is_owned
from ortholora.errors import CaptureError


class EarlySteps:
    """Refuses an optimizer step on a matrix whose task gradients were captured and not yet resolved.

    Such is the optimizer that steps in the backward, one parameter at a time, to save memory.

    Args:
        groups: The shape groups.
        others: Adapters that are not captured; they must wait for the end of the step, too.
    """

    def __init__(self, groups: Sequence[ShapeGroup], others: OtherAdapters) -> None:
        self._groups, self._others = groups, others
        self._hook = register_optimizer_step_pre_hook(_refuser(weakref.ref(self)))
        weakref.finalize(self, self._hook.remove)

    def stop(self) -> None:
        """Let the optimizers alone."""
        self._hook.remove()

    def refuse(self, optimizer: Optimizer) -> None:
        """Look at an optimizer that is about to step.

        Raises:
            CaptureError: Names a matrix that it holds.
        """
        if not any(any(group.touched) for group in self._groups):
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for matrix in _captured(self._groups):
            if id(matrix.parameter) in held:
                raise _early(matrix, f"a step of {type(optimizer).__name__} on the plain joint gradient")
        name = self._others.held_by(p for group in optimizer.param_groups for p in group["params"] if p.requires_grad)
        if name is not None:
            raise trained(name, f"a step of {type(optimizer).__name__} between ortho.batch(...) and ortho.resolve()")

    def check(self) -> None:
        """A captured gradient must still be there, unless nobody but the user took it away.

        Raises:
            CaptureError: Names a matrix with a hook after its gradient, and without a gradient.
        """
        for matrix in _captured(self._groups):
            parameter = matrix.owner._parameters.get(matrix.key)  # in every step: faster than `matrix.parameter`
            if (
                parameter is not None
                and parameter.grad is None
                and getattr(parameter, "_post_accumulate_grad_hooks", None)
                and not is_owned(parameter)  # DeepSpeed steps later, and by what is written then
            ):
                raise _early(matrix, "a hook (register_post_accumulate_grad_hook) that took its gradient away")


def _captured(groups: Sequence[ShapeGroup]) -> list[Matrix]:
    return [m for group in groups for m, touched in zip(group.matrices, group.touched, strict=True) if touched]


def _refuser(early: weakref.ref[EarlySteps]) -> Any:
    def refuse(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        alive = early()
        # A closure (Lightning gives one always) brings the last backward, and resolve, into the step itself.
        if alive is not None and not any(callable(given) for given in (*args[1:], *kwargs.values())):
            alive.refuse(optimizer)

    return refuse


def _early(matrix: Matrix, found: str) -> CaptureError:
    return CaptureError(
        f"{matrix.name} would be trained before resolve()",
        expected="ortho.resolve() after the last backward of a step, and then optimizer.step()",
        found=found,
        todo="call ortho.resolve() first (ortho.discard() if this step is to be plain joint training), and use no "
        "optimizer that steps in the backward: it would never see what the rule decides",
    )
