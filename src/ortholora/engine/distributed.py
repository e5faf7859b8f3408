"""Reduce, then decide: task gradients become global before any rule sees them.

The mean over ranks is exactly what DDP does to `.grad`, so both obey the same loss scaling. Every rank
takes part with every buffer, whatever it captured, so a task that is absent somewhere cannot stall.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ortholora.engine.buffers import ShapeGroup


def world_size() -> int:
    """Ranks that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduce_mean(groups: Sequence[ShapeGroup], present: Tensor) -> Tensor:
    """Average the task gradients over the ranks, in place, and agree on what was touched.

    Args:
        groups: The shape groups; matrices untouched here count as zero.
        present: `[T]` bool: tasks with rows on this rank.

    Returns:
        `[T]` bool: tasks with rows on any rank.
    """
    for group in groups:
        group.zero_untouched()
    if world_size() == 1:
        return present
    present = _agree(groups, present)
    for group in groups:
        dist.all_reduce(group.buffer)
        group.buffer.div_(world_size())
    return present


def _agree(groups: Sequence[ShapeGroup], present: Tensor) -> Tensor:
    flags = [*present.tolist(), *(touched for group in groups for touched in group.touched)]
    shared = torch.tensor(flags, dtype=torch.int32, device=groups[0].buffer.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    agreed = shared.bool().tolist()
    position = len(present)
    for group in groups:
        group.touched = agreed[position : position + len(group.touched)]
        position += len(group.touched)
    return torch.tensor(agreed[: len(present)])


def barrier() -> None:
    """Wait for all ranks; nothing in one process."""
    if world_size() > 1:
        dist.barrier()


def summed(values: Tensor, device: torch.device) -> Tensor:
    """The sum of the ranks' values, on the CPU; a copy in one process."""
    if world_size() == 1:
        return values.clone()
    total = values.to(device, copy=True)
    dist.all_reduce(total)
    return total.cpu()
