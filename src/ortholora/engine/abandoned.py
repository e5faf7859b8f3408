"""Steps that were begun and given up: an exception, a loss that is not finite, and the gradients are zeroed.

What they captured must not enter the next step. Zeroed gradients tell, and are seen without a look at the device: they
are gone, or their version changed since the micro-batch before ended.

With FSDP2 they are those of the parts that the optimizer holds, and come with the first micro-batch whose gradients are
reduced. What earlier ones left lies inside FSDP2, where `zero_grad()` does not reach it: nothing tells of zeroing, so
after an exception such a step is refused. With DeepSpeed's ZeRO that is so for every gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ortholora.engine.behind import Behind
from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.sharded import is_sharded, local
from ortholora.engine.zero import is_owned
from ortholora.errors import CaptureError


@dataclass(frozen=True)
class _Witness:
    """The gradient of one captured matrix at some moment; with FSDP2, this rank's part of it."""

    parameter: Tensor
    gradient: Tensor
    version: int

    @property
    def is_unchanged(self) -> bool:
        return self.is_the_same and _version(self.gradient) == self.version

    @property
    def is_the_same(self) -> bool:
        return self.parameter.grad is self.gradient


class StepGuard:
    """Knows whether what was captured since the last resolve still belongs to one step.

    Args:
        groups: The shape groups.
        behind: Tells of a backward that was cut short.
    """

    def __init__(self, groups: Sequence[ShapeGroup], behind: Behind) -> None:
        self._groups, self._behind = groups, behind
        self._opened: _Witness | None = None
        self._closed: _Witness | None = None
        self._broken: str | None = None
        self._held: dict[int, Tensor] = {}  # with FSDP2, by matrix: what the optimizer holds

    def hold(self) -> None:
        """Note the parts that the optimizer holds; with FSDP2, while no module is gathered."""
        matrices = (matrix for group in self._groups for matrix in group.matrices)
        self._held = {id(matrix): matrix.parameter for matrix in matrices}

    def was_abandoned(self) -> bool:
        """Whether what was captured is of a step whose gradients were zeroed. To be asked before a micro-batch."""
        self._note_cut()
        waiting = self._is_waiting()
        abandoned = waiting and self._is_zeroed()
        if abandoned or not waiting:
            self._broken = self._closed = None
        return abandoned

    def open(self) -> None:
        """A micro-batch begins."""
        self._opened = self._witness()

    def close(self) -> None:
        """A micro-batch ends, well or not."""
        self._note_cut()
        if self._opened is not None and not self._opened.is_the_same:
            self._broken = "the gradients were zeroed inside a batch, while captured ones of batches before it waited"
        self._opened, self._closed = None, self._witness()

    def fail(self) -> None:
        """An exception ends a micro-batch. To be told with FSDP2 and ZeRO, before `close`."""
        if self._is_waiting() and self._witness() is None:
            self._broken = (
                "an exception, and before it gradients that FSDP2 or DeepSpeed holds: zeroing does not reach them"
            )

    def check(self) -> None:
        """To be asked before a step is resolved.

        Raises:
            CaptureError: A part of what was captured does not belong to it.
        """
        self._note_cut()
        if self._broken is not None and self._is_waiting():
            raise CaptureError(
                "This step cannot be resolved: what was captured is not one step's",
                expected="micro-batches whose backward came to its end, and gradients zeroed before the first of them",
                found=self._broken,
                todo="zero the gradients before the batch after an exception or where you skip a step (what was "
                "captured is then forgotten by itself), or call ortho.discard() and zero the gradients",
            )
        self._closed = None

    def _note_cut(self) -> None:
        if self._behind.unfinished:
            self._behind.forget()
            if self._is_waiting():
                self._broken = "a backward of this step did not come to its end (an exception)"

    def _is_waiting(self) -> bool:
        return any(any(group.touched) for group in self._groups)

    def _is_zeroed(self) -> bool:
        """Whether no captured matrix has a gradient any more. Looks at values only where somebody changed them."""
        if self._held and self._closed is None:
            return False  # FSDP2 has not reduced any yet
        seen = False
        for parameter in self._captured():
            seen, gradient = True, parameter.grad
            if gradient is None:
                continue
            if self._closed is None or self._closed.is_unchanged or not _is_zero(local(gradient)):
                return False
        return seen

    def _witness(self) -> _Witness | None:
        for parameter in self._captured():
            gradient = parameter.grad
            if gradient is not None:
                return _Witness(parameter, gradient, _version(gradient))
        return None

    def _captured(self) -> Iterator[Tensor]:
        """The parameters of the captured matrices, as the optimizer holds them; not those whose `.grad` is ZeRO's."""
        for group in self._groups:
            for matrix, touched in zip(group.matrices, group.touched, strict=True):
                if touched and not is_owned(matrix.parameter):
                    yield self._held[id(matrix)] if self._held else matrix.parameter


def _version(gradient: Tensor) -> int:
    """Grows with every change: operations on a DTensor count on it, those of FSDP2 itself on its part."""
    return gradient._version + (local(gradient)._version if is_sharded(gradient) else 0)


def _is_zero(gradient: Tensor) -> bool:
    return not bool(torch.any(gradient))
