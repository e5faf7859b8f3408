"""Where task gradients are kept: one tensor `[n, T, numel]` for all matrices of one shape.

Memory: `4 · T · (trainable LoRA elements)` bytes in float32, half of it in bfloat16; allocated at the first
backward and kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.grouping import Grouping
from ortholora.engine.layers import Matrix
from ortholora.engine.rounding import add


class ShapeGroup:
    """The task gradients of all LoRA matrices of one shape.

    Args:
        matrices: The n matrices, all of one shape on one device.
        num_tasks: T.
        dtype: Precision of the buffer.
    """

    def __init__(self, matrices: Sequence[Matrix], num_tasks: int, dtype: torch.dtype = torch.float32) -> None:
        self.matrices: list[Matrix] = list(matrices)
        self.num_tasks = num_tasks
        self.dtype = dtype
        self.shape: tuple[int, ...] = tuple(self.matrices[0].parameter.shape)
        self.touched: list[bool] = [False] * len(self.matrices)  # got a task gradient in this step (on any rank)
        self.ran: list[bool] = [False] * len(self.matrices)  # was part of a recorded forward in this step
        self.additions: list[int] = [0] * len(self.matrices)  # to what was there already, in this step
        self._buffer: Tensor | None = None

    @property
    def numel(self) -> int:
        """Elements of one matrix."""
        return math.prod(self.shape)

    @property
    def buffer(self) -> Tensor:
        """Task gradients `[n, T, numel]`; rows of untouched matrices hold stale values."""
        device = self.matrices[0].parameter.device
        if self._buffer is None or (self._buffer.device != device and not any(self.touched)):
            self._buffer = torch.zeros(len(self.matrices), self.num_tasks, self.numel, dtype=self.dtype, device=device)
        return self._buffer

    def clear(self) -> None:
        """Forget the step. Nothing is zeroed: the first write of the next step overwrites."""
        self.touched = [False] * len(self.matrices)
        self.ran = [False] * len(self.matrices)
        self.additions = [0] * len(self.matrices)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the model takes along: not the task gradients."""
        return {**self.__dict__, "_buffer": None, "touched": [False] * len(self.matrices)}

    def zero_untouched(self) -> None:
        """Make the rows of matrices without a gradient in this step zero."""
        for row, touched in enumerate(self.touched):
            if not touched:
                self.buffer[row].zero_()


class Slot:
    """The place of one matrix in its `ShapeGroup`; capture writes through it."""

    def __init__(self, group: ShapeGroup, row: int) -> None:
        self.group: ShapeGroup = group
        self.row: int = row
        self.matrix: Matrix = group.matrices[row]
        self.captures: int = 0  # ever; a trial asks whether a batch added one

    def capture(self, grouping: Grouping, delta: Tensor, x: Tensor) -> Tensor:
        """Add `Σ_{rows of t} δᵀ x` to every task's gradient.

        Args:
            grouping: Tasks of the micro-batch.
            delta: Output gradients `[..., d]`.
            x: Inputs `[..., k]`, same dtype as `delta`.

        Returns:
            The ordinary gradient of this micro-batch `[d, k]`: the sum over the tasks.
        """
        into = self._fresh_view(grouping)
        products = grouping.task_products(delta, x, self.matrix.name, out=into)
        if into is None:
            self._add(grouping, products)
        self.group.touched[self.row] = True
        self.captures += 1
        if len(products) > 1:
            return products.sum(0)
        # Never the buffer itself: autograd would keep it as `.grad` and accumulate into both.
        return products[0] if into is None else products[0].clone()

    def add(self, task: int, gradient: Tensor) -> None:
        """Add a whole gradient `[d, k]` that belongs to one task."""
        target = self.group.buffer[self.row]
        if not self.group.touched[self.row]:
            target.zero_()
            self.group.touched[self.row] = True
        add(target[task], gradient.detach().flatten(), self._count())

    def _fresh_view(self, grouping: Grouping) -> Tensor | None:
        """The buffer itself as the output of the products, when nothing is in it and all tasks are there."""
        if self.group.touched[self.row] or len(grouping.tasks) != self.group.num_tasks:
            return None
        return self.group.buffer[self.row].view(-1, *self.group.shape)

    def _add(self, grouping: Grouping, products: Tensor) -> None:
        target = self.group.buffer[self.row]
        flat = products.flatten(1)
        if not self.group.touched[self.row]:
            target.zero_()
        if len(grouping.tasks) == self.group.num_tasks:
            add(target, flat, self._count())
        elif grouping.pure:
            add(target[grouping.tasks[0]], flat[0], self._count())
        elif target.dtype == flat.dtype:
            target.index_add_(0, grouping.task_index(target.device), flat)
        else:
            count = self._count()
            for task, product in zip(grouping.tasks, flat, strict=True):
                add(target[task], product, count)

    def _count(self) -> int:
        """How often this matrix was added to before, in this step."""
        self.group.additions[self.row] += 1
        return self.group.additions[self.row] - 1


def group_by_shape(
    matrices: Sequence[Matrix], num_tasks: int, dtype: torch.dtype = torch.float32
) -> tuple[list[ShapeGroup], dict[int, Slot]]:
    """Sort matrices into groups of one shape and device.

    Returns:
        The groups, and the slot of every matrix by its index in `matrices`. Matrices that share one
        parameter share one slot, so that a tied parameter's gradients add up before the Gram.
    """
    members: dict[tuple[object, ...], list[Matrix]] = {}
    first: dict[int, Matrix] = {}
    for matrix in matrices:
        parameter = matrix.parameter
        if id(parameter) not in first:
            first[id(parameter)] = matrix
            members.setdefault((tuple(parameter.shape), parameter.device), []).append(matrix)
    groups = [ShapeGroup(group, num_tasks, dtype) for group in members.values()]
    by_matrix = {id(m): Slot(group, row) for group in groups for row, m in enumerate(group.matrices)}
    slots = {i: by_matrix[id(first[id(m.parameter)])] for i, m in enumerate(matrices)}
    return groups, slots
