"""Reduce, then decide: task gradients become global before any rule sees them.

The mean over ranks is exactly what DDP and FSDP2 do to `.grad`, so all obey the same loss scaling. Every rank
takes part with every buffer, whatever it captured, so a task that is absent somewhere cannot stall.

The matrices of a shape are dealt out evenly: each rank gets the reduced task gradients of its own ones only
(reduce-scatter), the ranks share the small Gram, every rank runs the rule on all of it, and each rank's sums
go round (all-gather). That sends `T·P + P + 2·N·T²` numbers per rank, where reducing everything everywhere
sends `2·T·P` (P trainable LoRA elements in N matrices; each times `(W − 1) / W` for W ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ortholora.engine.buffers import ShapeGroup
from ortholora.engine.gram import inner_products, weighted_sum

T = TypeVar("T")

#: Backends whose reduce-scatter is an all-reduce in disguise: with gloo it sends as many bytes and takes longer.
ALL_REDUCE_ONLY = {"gloo"}


def world_size() -> int:
    """Ranks that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is; 0 without torch.distributed."""
    return dist.get_rank() if world_size() > 1 else 0


@dataclass(frozen=True)
class Share:
    """Which matrices of a shape group this rank decides.

    Attributes:
        count: The group's matrices.
        spread: How many of them, from the first on, are dealt out evenly. Every rank decides the others.
        own: This rank's among the spread ones.
    """

    count: int
    spread: int
    own: slice

    @property
    def held(self) -> list[slice]:
        """Rows whose reduced task gradients are here."""
        return [rows for rows in (self.own, slice(self.spread, self.count)) if rows.stop > rows.start]


def share_of(count: int, ranks: int, rank: int) -> Share:
    """Deal `count` matrices out to the ranks: equal parts, and what is left over to all of them."""
    each = count // ranks if ranks > 1 else 0
    return Share(count, each * ranks, slice(each * rank, each * (rank + 1)))


def agree(groups: Sequence[ShapeGroup], present: Tensor, due: bool | None = None) -> tuple[Tensor, bool]:
    """Agree on what was touched in this step, and make everything else zero.

    Args:
        groups: The shape groups; `touched` becomes that of any rank.
        present: `[T]` bool: tasks with rows on this rank.
        due: This rank has something to try out together with the others; None, on all ranks: that is not agreed on.

    Returns:
        `[T]` bool: tasks with rows on any rank. And whether any rank has something to try out.
    """
    for group in groups:
        group.zero_untouched()
    if world_size() == 1:
        return present, bool(due)
    asked = [] if due is None else [due]
    flags = [*asked, *present.tolist(), *(touched for group in groups for touched in group.touched)]
    shared = torch.tensor(flags, dtype=torch.int32, device=groups[0].buffer.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    agreed = shared.bool().tolist()
    due = bool(asked) and agreed.pop(0)
    position = len(present)
    for group in groups:
        group.touched = agreed[position : position + len(group.touched)]
        position += len(group.touched)
    return torch.tensor(agreed[: len(present)]), due


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether it is so on any rank. A collective."""
    return bool(largest_of(int(flag), device))


def largest_of(value: int, device: torch.device) -> int:
    """The largest of the ranks' values. A collective."""
    if world_size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.int32, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def reduce_mean(groups: Sequence[ShapeGroup], whole: bool) -> list[Share]:
    """Average the task gradients over the ranks, in place.

    Args:
        groups: The shape groups, after `agree`.
        whole: Leave all of the mean on every rank (for the comparison with `.grad`, and for running means). So it
            is in any case where the backend has no reduce-scatter of its own.

    Returns:
        For each group, where its buffer holds the mean. Other rows hold this rank's own gradients.
    """
    ranks = world_size()
    whole = whole or ranks == 1 or dist.get_backend() in ALL_REDUCE_ONLY
    shares = [share_of(len(group.matrices), 1 if whole else ranks, rank()) for group in groups]
    if ranks > 1:
        for group, share in zip(groups, shares, strict=True):
            if share.spread:
                part = torch.empty_like(group.buffer[share.own])
                _reduce_scatter(part, group.buffer[: share.spread])
                group.buffer[share.own] = part
            if share.spread < share.count:
                dist.all_reduce(group.buffer[share.spread :])
            for rows in share.held:
                group.buffer[rows].div_(ranks)
    return shares


class Reduced:
    """Task gradients (and their running means) after the reduction, wherever they lie.

    Args:
        stacks: `[n, S, numel]` for each shape group, valid in the rows that its share holds.
        shares: What `reduce_mean` returned.
    """

    def __init__(self, stacks: Sequence[Tensor], shares: Sequence[Share]) -> None:
        self._stacks, self._shares = stacks, shares

    def inner_products(self, factors: Sequence[Tensor] | None = None) -> Tensor:
        """`⟨g_s, g_t⟩` of every matrix, group after group: `[Σ n, S, S]` float32, the same on every rank.

        Args:
            factors: `[n]` for each shape group, by which the gradients are multiplied first.
        """
        device = self._stacks[0].device
        parts: Sequence[Tensor | None] = [None] * len(self._stacks) if factors is None else factors
        pairs = [
            (stack, share, None if part is None else part.to(stack.device))
            for stack, share, part in zip(self._stacks, self._shares, parts, strict=True)
        ]
        if not any(share.spread for share in self._shares):
            return torch.cat([inner_products(stack, part).to(device) for stack, _, part in pairs])
        gram = torch.cat([_own_gram(stack, share, part).to(device) for stack, share, part in pairs])
        dist.all_reduce(gram)  # each matrix is nonzero on one rank only: nothing is rounded
        return gram

    def largest(self, only: Sequence[Tensor] | None = None) -> Tensor:
        """The largest absolute value among the task gradients of every matrix: `[Σ n]` float32, on every rank.

        Args:
            only: `[n]` bool for each shape group: the matrices to look at; 0 for the others.
        """
        device = self._stacks[0].device
        found = []
        for i, (stack, share) in enumerate(zip(self._stacks, self._shares, strict=True)):
            values = stack.new_zeros(share.count, dtype=torch.float32)
            for rows in share.held:
                wanted = torch.arange(rows.start, rows.stop, device=stack.device)
                if only is not None:
                    wanted = wanted[only[i].to(stack.device)[rows]]
                if len(wanted):
                    values[wanted] = torch.linalg.vector_norm(stack[wanted].flatten(1).float(), ord=torch.inf, dim=1)
            found.append(values.to(device))
        largest = torch.cat(found)
        if any(share.spread for share in self._shares):
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest

    def weighted_sum(self, group: int, weights: Tensor) -> Tensor:
        """`Σ_s w_s g_s` of every matrix of a group: weights `[n, S]` → `[n, numel]` float32."""
        stack, share = self._stacks[group], self._shares[group]
        if not share.spread:
            return weighted_sum(weights, stack)
        sums = stack.new_empty((share.count, stack.shape[-1]), dtype=torch.float32)
        for rows in share.held:
            sums[rows] = weighted_sum(weights[rows], stack[rows])
        _all_gather(sums[: share.spread], sums[share.own].clone())
        return sums


def _own_gram(stack: Tensor, share: Share, factors: Tensor | None) -> Tensor:
    """The Gram of this rank's matrices, zero for the others'; what all ranks hold is brought in by the first."""
    gram = stack.new_zeros((share.count, stack.shape[1], stack.shape[1]), dtype=torch.float32)
    for rows in share.held if rank() == 0 else share.held[: int(share.spread > 0)]:
        gram[rows] = inner_products(stack[rows], None if factors is None else factors[rows])
    return gram


def _reduce_scatter(out: Tensor, values: Tensor) -> None:
    _named("reduce_scatter_single", "reduce_scatter_tensor")(out, values)


def _all_gather(out: Tensor, values: Tensor) -> None:
    _named("all_gather_single", "all_gather_into_tensor")(out, values)


def _named(new: str, old: str) -> Callable[[Tensor, Tensor], object]:
    """Newer torch renamed these two, and warns of the old names."""
    return getattr(dist, new, None) or getattr(dist, old)


def barrier() -> None:
    """Wait for all ranks; nothing in one process."""
    if world_size() > 1:
        dist.barrier()


def of_first(make: Callable[[], T]) -> T:
    """What the first rank makes, on every rank. A collective; the other ranks do not call it."""
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    return made[0]


def summed(values: Tensor, device: torch.device) -> Tensor:
    """The sum of the ranks' values, on the CPU; a copy in one process."""
    if world_size() == 1:
        return values.clone()
    total = values.to(device, copy=True)
    dist.all_reduce(total)
    return total.cpu()
