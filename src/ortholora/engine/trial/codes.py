"""A power of two for each row of a batch, by which its gradient is known wherever it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ortholora.engine.grouping import Grouping

#: Exponents run from −span to span: far inside of what float32 and bfloat16 can hold, and just so in float16.
SPAN, HALF_SPAN = 12, 3


@dataclass(frozen=True)
class Coded:
    """The leading dimensions of one tensor, flattened to U units.

    Attributes:
        blocks: `[U]`, which block of the batch each unit belongs to.
        factors: `[U]` float32, the power of two of its block.
    """

    blocks: Tensor
    factors: Tensor

    def times(self, gradient: Tensor) -> Tensor:
        """The gradient with every unit multiplied by its power: exact, but for numbers at the ends of the range."""
        units = gradient.reshape(len(self.factors), -1)
        return (units * self.factors.to(units.device, units.dtype)[:, None]).view(gradient.shape)

    def inverse(self) -> Coded:
        """The same units with the inverse powers: the largest becomes the smallest."""
        return Coded(self.blocks, 1 / self.factors)

    def levelled(self, gradient: Tensor) -> Tensor:
        """The gradient with every block's largest element 1 (or 0), so that no task's loss outweighs another's."""
        units = gradient.reshape(len(self.factors), -1)
        blocks = self.blocks.to(units.device)
        largest = units.abs().amax(1).float()
        of_block = largest.new_zeros(int(self.blocks.max()) + 1).scatter_reduce(0, blocks, largest, "amax")
        scale = torch.where(of_block > 0, 1 / of_block, 0.0)[blocks]
        return (units.float() * scale[:, None]).to(units.dtype).view(gradient.shape)


class Codes:
    """Powers of two for the blocks of a batch: its rows, or what else has to stay apart.

    With row-level ids each row is a block. Token-level ids do not say where rows are, so there a block is a row (or a
    column) that holds one task, or else all that belongs to a task.

    Args:
        grouping: The tasks of the batch.
        span: Exponents run from −span to span. Blocks are told apart as long as there are not more than so many;
            of more, some share an exponent, at random.
        by_task: A block is all that belongs to a task.
    """

    def __init__(self, grouping: Grouping, span: int, by_task: bool = False) -> None:
        ids = grouping.ids
        self.kind: str
        self.kind, self._blocks = _blocks(ids)
        if by_task:
            self._blocks = ids
        count = int(self._blocks.max()) + 1
        generator = torch.Generator().manual_seed(0)  # of its own: the run's generators are left alone
        choices = 2 * span + 1
        drawn = torch.randperm(choices, generator=generator)
        if count > choices:
            drawn = torch.cat([drawn, torch.randint(choices, (count - choices,), generator=generator)])
        self._factors = torch.ldexp(torch.ones(count), drawn[:count] - span)

    def of_layer(self, lead: Sequence[int]) -> Coded | None:
        """How capture divides an input with these leading dimensions; None where it cannot."""
        lead, shape = tuple(lead), tuple(self._blocks.shape)
        if len(shape) == 1:
            return self._coded(self._blocks) if lead[:1] == shape else None
        if lead in (shape, (self._blocks.numel(),)):
            return self._coded(self._blocks.flatten())
        return self._coded(self._blocks[:, 0]) if self.kind == "row" and lead[:1] == shape[:1] else None

    def of_output(self, shape: Sequence[int]) -> Coded | None:
        """How an output of the model is divided; None where it is not by rows or tokens."""
        shape, own = tuple(shape), tuple(self._blocks.shape)
        if len(own) == 2 and shape[:2] == own:
            return self._coded(self._blocks.flatten())
        return self.of_layer(shape[:1])

    def of_dimension(self, size: int) -> Coded | None:
        """How a dimension that may be the batch's is divided; None if it has another length."""
        count = int(self._blocks.max()) + 1
        return self._coded(torch.arange(count)) if size == count else None

    def _coded(self, blocks: Tensor) -> Coded:
        return Coded(blocks, self._factors[blocks])


def _blocks(ids: Tensor) -> tuple[str, Tensor]:
    if ids.dim() == 1:
        return "row", torch.arange(len(ids))
    rows, columns = ids.shape
    if bool((ids == ids[:, :1]).all()):
        return "row", torch.arange(rows)[:, None].expand(rows, columns)
    if bool((ids == ids[:1]).all()) and rows > 1:
        return "column", torch.arange(columns).expand(rows, columns)
    return "task", ids
