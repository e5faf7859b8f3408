"""Steps that were begun and given up: an exception, a loss that is not finite, and the gradients are zeroed.

What they captured must not enter the next step. Zeroed gradients tell, and are seen without a look at the device: they
are gone, or their version changed since the micro-batch before ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ortholora.engine.behind import Behind
from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.layers import Matrix
from ortholora.engine.sharded import is_sharded
from ortholora.errors import CaptureError


@dataclass(frozen=True)
class _Witness:
    """The gradient of one captured matrix at some moment."""

    matrix: Matrix
    gradient: Tensor
    version: int

    @property
    def is_unchanged(self) -> bool:
        return self.is_the_same and self.gradient._version == self.version

    @property
    def is_the_same(self) -> bool:
        return self.matrix.parameter.grad is self.gradient


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
        seen = False
        for matrix in self._captured():
            seen, gradient = True, matrix.parameter.grad
            if gradient is None:
                continue
            if self._closed is None or self._closed.is_unchanged or not _is_zero(gradient):
                return False
        return seen

    def _witness(self) -> _Witness | None:
        for matrix in self._captured():
            gradient = matrix.parameter.grad
            if gradient is not None:
                return _Witness(matrix, gradient, gradient._version)
        return None

    def _captured(self) -> Iterator[Matrix]:
        """Captured matrices that have a gradient of their own: FSDP2 may keep one back until it is reduced."""
        for group in self._groups:
            for matrix, touched in zip(group.matrices, group.touched, strict=True):
                if touched and not is_sharded(matrix.parameter):
                    yield matrix


def _is_zero(gradient: Tensor) -> bool:
    return not bool(torch.any(gradient))
