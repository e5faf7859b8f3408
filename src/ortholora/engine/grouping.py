"""Which rows (or tokens) of a micro-batch belong to which task.

A `Grouping` is made once per micro-batch on the host and then only used to slice: capture must not
look at task ids on the device, which would synchronise it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ortholora.errors import CaptureError

#: Columns up to which a matrix counts as thin in a CPU product (at rank 64 both ways take the same time).
THIN = 16

TaskIds = int | Sequence[int] | Tensor


class Grouping:
    """The task of every row or token of one micro-batch.

    The first dimension of a layer's input is taken as the sample (`[B, ..., k]`), or the first two as sample
    and token; a model that runs sequence-first (`[S, B, k]`) needs token-level ids of that shape.

    Three cases, cheapest first: one task (`pure`), every task one contiguous run (slices; one batched
    product when all runs are equally long), scattered (an index per task).

    Args:
        task_ids: One int (all rows), `[B]` row-level ids, or `[B, S]` token-level ids, each in `[0, T)`.
            Ids on a GPU cost one synchronisation here; keep them on the CPU.
        num_tasks: T.

    Raises:
        ValueError: Ids of a wrong dtype, dimension or range.
    """

    def __init__(self, task_ids: TaskIds, num_tasks: int) -> None:
        ids = as_cpu_ids(task_ids, num_tasks)
        self.shape: tuple[int, ...] = tuple(ids.shape)
        self.tasks: list[int] = ids.unique().tolist()  # sorted
        self.pure: bool = len(self.tasks) == 1
        self.ids = ids
        self._units = ids.flatten()
        self._runs = _one_run_each(self._units)
        self._equal_runs = self._runs is not None and _are_equal(self._runs, self.tasks)
        self._rows = _row_grouping(ids, num_tasks) if ids.dim() == 2 and not self.pure else None
        self._index: dict[tuple[torch.device, int], Tensor] = {}
        self._known_sizes = _known_sizes(self.shape, self._rows is not None)

    def pattern(self, shape: Sequence[int]) -> Hashable:
        """Which dimensions of a layer's input are as long as something that the ids know of.

        What no other pattern hides: two inputs of one pattern are divided by task in the same way.
        """
        return tuple(map(self._known_sizes.get, shape[:-1]))

    def task_products(self, delta: Tensor, x: Tensor, where: str, out: Tensor | None = None) -> Tensor:
        """Compute `g_t = Σ_{rows of t} δᵀ x` for every task of the batch.

        Args:
            delta: Output gradients, `[..., d]`.
            x: Inputs, `[..., k]`, same leading dimensions.
            where: Name of the layer, for messages.
            out: Where to put the result, in any precision.

        Returns:
            `[P, d, k]`, one product for each entry of `tasks`.

        Raises:
            CaptureError: The leading dimensions do not match the task ids.
        """
        if out is None:
            out = x.new_empty(len(self.tasks), delta.shape[-1], x.shape[-1])
        if self.pure:
            _product(delta.reshape(-1, delta.shape[-1]), x.reshape(-1, x.shape[-1]), out[0])
            return out
        if x.numel() == 0:  # an expert without tokens
            return out.zero_()
        level = self._level(x, where)
        delta, x = level._by_unit(delta), level._by_unit(x)
        if level._equal_runs:
            groups, d, k = out.shape
            _product(delta.reshape(groups, -1, d), x.reshape(groups, -1, k), out)
        elif level._runs is not None:
            level._sliced_products(delta, x, out)
        else:
            level._scattered_products(delta, x, out)
        return out

    def task_index(self, device: torch.device) -> Tensor:
        """The entries of `tasks` as an index tensor `[P]` on `device`."""
        key = (device, -1)
        if key not in self._index:
            self._index[key] = torch.tensor(self.tasks).to(device, non_blocking=True)
        return self._index[key]

    def _level(self, x: Tensor, where: str) -> Grouping:
        """Find the level (token or row) at which the ids describe this input."""
        lead = tuple(x.shape[:-1])
        units = len(self._units)
        if len(self.shape) == 2 and (lead == self.shape or lead == (units,)):
            return self
        if len(self.shape) == 1 and lead and lead[0] == units:
            return self
        if self._rows is not None and lead and lead[0] == self.shape[0]:
            return self._rows
        raise CaptureError(
            f"The input of {where} cannot be split by task",
            expected=f"leading dimensions that match task ids of shape {list(self.shape)}",
            found=f"input of shape {list(x.shape)}",
            todo="pass token-level ids of the input's leading shape to ortho.batch(...), or use task-pure "
            "micro-batches: ortho.batch(task_index) with rows of one task",
        )

    def _by_unit(self, x: Tensor) -> Tensor:
        return x.reshape(len(self._units), -1, x.shape[-1])

    def _sliced_products(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        assert self._runs is not None
        d, k = delta.shape[-1], x.shape[-1]
        for task, start, stop in self._runs:
            rows, inputs = delta[start:stop].reshape(-1, d), x[start:stop].reshape(-1, k)
            _product(rows, inputs, out[self.tasks.index(task)])

    def _scattered_products(self, delta: Tensor, x: Tensor, out: Tensor) -> None:
        d, k = delta.shape[-1], x.shape[-1]
        for position, task in enumerate(self.tasks):
            index = self._unit_index(task, x.device)
            rows = delta.index_select(0, index).reshape(-1, d)
            _product(rows, x.index_select(0, index).reshape(-1, k), out[position])

    def _unit_index(self, task: int, device: torch.device) -> Tensor:
        key = (device, task)
        if key not in self._index:
            index = (self._units == task).nonzero().squeeze(1)
            self._index[key] = index.to(device, non_blocking=True)
        return self._index[key]


def as_cpu_ids(task_ids: TaskIds, num_tasks: int) -> Tensor:
    """Task ids as a CPU tensor `[B]` or `[B, S]` of int64; one int as `[1]`.

    Raises:
        ValueError: A wrong dtype, dimension or range.
    """
    ids = torch.as_tensor(task_ids).detach()
    if ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise ValueError(f"task_ids should be integers. Found dtype {ids.dtype}; pass ids.long().")
    ids = ids.to("cpu", torch.long)
    if ids.dim() == 0:
        ids = ids.reshape(1)
    if ids.dim() > 2 or ids.numel() == 0:
        raise ValueError(f"task_ids should be one int, [B] or [B, S], and not empty. Found shape {list(ids.shape)}.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= num_tasks:
        raise ValueError(
            f"task_ids should be in [0, {num_tasks}) for {num_tasks} tasks. Found {low if low < 0 else high}; "
            "check the order of `tasks`, and give padding the task of its row."
        )
    return ids


def _known_sizes(shape: tuple[int, ...], apart: bool) -> dict[int, str]:
    """Length → what is so long: the rows, the tokens of a row, all tokens (and whether each row has one task)."""
    sizes = {"rows": shape[0]} if len(shape) == 1 else {"row" if apart else "rows": shape[0], "tokens": shape[1]}
    sizes["all"] = math.prod(shape)
    return {size: " ".join(name for name, other in sizes.items() if other == size) for size in sizes.values()}


def _one_run_each(units: Tensor) -> list[tuple[int, int, int]] | None:
    """`(task, start, stop)` of every task if each one's units are contiguous, else None."""
    tasks, counts = torch.unique_consecutive(units, return_counts=True)
    if len(tasks) != len(set(tasks.tolist())):
        return None
    stops = counts.cumsum(0).tolist()
    starts = [0, *stops[:-1]]
    return list(zip(tasks.tolist(), starts, stops, strict=True))


def _are_equal(runs: list[tuple[int, int, int]], tasks: list[int]) -> bool:
    """Whether the runs are equally long and in the order of the tasks: one batched product does them all."""
    return len({stop - start for _, start, stop in runs}) == 1 and [task for task, _, _ in runs] == tasks


def _product(delta: Tensor, x: Tensor, out: Tensor) -> None:
    """`out = δᵀ x`, for one task (`[n, d]`, `[n, k]`) or a batch of them (`[P, n, d]`, `[P, n, k]`)."""
    multiply = torch.bmm if delta.dim() == 3 else torch.mm
    if out.shape[-1] <= THIN < out.shape[-2] and not out.is_cuda:
        # A tall and thin result takes CPU libraries up to six times longer than its transpose.
        out.copy_(multiply(x.mT, delta).mT)
    elif out.dtype != x.dtype:
        out.copy_(multiply(delta.mT, x))
    else:
        multiply(delta.mT, x, out=out)


def _row_grouping(ids: Tensor, num_tasks: int) -> Grouping | None:
    """Row-level ids behind token-level ids, where every row holds one task (poolers see rows only)."""
    first = ids[:, 0]
    return Grouping(first, num_tasks) if bool((ids == first[:, None]).all()) else None
