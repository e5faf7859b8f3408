"""The rows of a step in two halves, for rules that want to see through noise.

A task's squared length is inflated by its noise: `E‖g‖² = ‖E g‖² + noise`. The inner product of two gradients of
one task from different rows is not: `E⟨g_a, g_b⟩ = ⟨E g_a, E g_b⟩`. So a rule with `halves = True` gets the Gram
`[N, 2T, 2T]` of half a of every task, then half b. To the capture the halves are 2T tasks: one backward, exact for
any cut into micro-batches, buffers (and what is sent between ranks) twice as large.

Which half a row belongs to:

* `ortho.batch(ids, halves=…)` may say so. `OrthoTrainer` does, by the row's place among its task's rows of the whole
  step, so that neither the cut nor the number of ranks matters.
* Otherwise the units of a task go to half a and half b in turn, in the order in which this rank sees them in the
  step; on every second rank half b comes first. That does not depend on how a step is cut as long as the order of
  the rows stays; with several ranks it depends on who has which rows.

A unit is a row; with token-level ids `[B, S]` a run of one task's tokens within a row, because tokens of one text are
not independent; and a whole micro-batch where its ids are one int, or where a matrix of the model cannot be split by
row. A task with a single unit in a step has one half only: see `RuleContext.halves`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ortholora.engine.distributed import rank, summed
from ortholora.engine.grouping import TaskIds, as_cpu_ids


class Halves:
    """Deals the units of a step out to two halves, and counts them.

    Args:
        tasks: Names of the T tasks.
        whole_batches: A micro-batch is one unit.
    """

    def __init__(self, tasks: Sequence[str], whole_batches: bool) -> None:
        self._tasks, self._whole_batches = tasks, whole_batches
        self._warned = False
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self._counts = torch.zeros(2, len(self._tasks), dtype=torch.long)

    def split(self, task_ids: TaskIds, halves: TaskIds | None) -> Tensor:
        """Number the halves like tasks: half a of task t is t, half b is T + t.

        Args:
            task_ids: As `OrthoLora.batch` takes them.
            halves: 0 or 1 for each of them, or None: in turn.

        Raises:
            ValueError: Ids of a wrong dtype, dimension or range, or halves of another shape.
        """
        count = len(self._tasks)
        ids = as_cpu_ids(task_ids, count)
        if self._whole_batches and bool((ids == ids.flatten()[0]).all()):
            ids, halves = ids.flatten()[:1], None
        if halves is not None:
            ids = ids + count * _given(halves, ids)
        unit = _units(ids)
        of_unit = torch.empty(int(unit[-1]) + 1, dtype=torch.long)
        of_unit[unit] = ids.flatten()
        if halves is None:
            of_unit += count * self._in_turn(of_unit)
        self._counts.view(-1).add_(torch.bincount(of_unit, minlength=2 * count))
        return of_unit[unit].view(ids.shape)

    def take_step(self, present: Tensor, device: torch.device) -> Tensor:
        """How many units each half has in the step, over all ranks: `[2, T]` float32 on the CPU. A collective.

        Warns once where a task has one half only.

        Args:
            present: `[T]` bool: tasks with rows on any rank.
            device: Where collectives run.
        """
        counts = summed(self._counts.float(), device)
        single = present & (counts.amin(0) == 0)
        if bool(single.any()) and not self._warned:
            self._warned = True
            names = ", ".join(repr(self._tasks[t]) for t in single.nonzero().flatten().tolist())
            units = "micro-batches" if self._whole_batches else "rows"
            warnings.warn(
                f"The rule compares two halves of each task's {units} in a step, and {names} had less than two: its "
                f"noise is unknown in such a step. Give every task two {units} a step, or take a rule without halves",
                stacklevel=5,  # the caller of resolve()
            )
        return counts

    def _in_turn(self, task_of_unit: Tensor) -> Tensor:
        """The half of each unit: the k-th of its task in this step goes to half `(k + rank) mod 2`."""
        seen = self._counts.sum(0) + rank()
        half = torch.empty_like(task_of_unit)
        for task in task_of_unit.unique().tolist():
            where = (task_of_unit == task).nonzero().squeeze(1)
            half[where] = (torch.arange(len(where)) + seen[task]) % 2
        return half


def wants_halves(rule: object) -> bool:
    """Whether the rule asks for two halves.

    Raises:
        ValueError: It also asks for running means or has a preconditioner.
    """
    if not getattr(rule, "halves", False):
        return False
    if getattr(rule, "memory", None) is not None or getattr(rule, "precondition", None) is not None:
        raise ValueError(f"A rule should have one of `halves`, `memory` and `precondition`. Found two on {rule!r}.")
    return True


def whole(gram: Tensor) -> Tensor:
    """The Gram of the task gradients `[N, T, T]` from that of their halves `[N, 2T, 2T]`."""
    count = gram.shape[1] // 2
    return gram.unflatten(2, (2, count)).sum(2).unflatten(1, (2, count)).sum(1)


def _units(ids: Tensor) -> Tensor:
    """The number of each id's unit, counted from 0: rows, or runs of one task within a row."""
    if ids.dim() == 1:
        return torch.arange(len(ids))
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return starts.flatten().cumsum(0) - 1


def _given(halves: TaskIds, ids: Tensor) -> Tensor:
    found = torch.as_tensor(halves).detach().cpu()
    if found.shape != ids.shape or not bool(((found == 0) | (found == 1)).all()):
        raise ValueError(
            f"halves should be 0 or 1 for each of the task_ids, of shape {list(ids.shape)}. "
            f"Found {list(found.shape)} with values {found.unique().tolist()[:5]}."
        )
    return found.long()
