"""The tasks' losses of a step, for rules that look at progress: sums and counts of each rank → means of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ortholora.engine.distributed import summed
from ortholora.errors import RuleError

#: Of one rank and one step: the tasks' summed losses `[T]`, and what they count `[T]`. Sums, because means of
#: micro-batches or of ranks do not add up to the mean of the step where they hold unequal numbers of rows.
LossSums = tuple[Tensor, Tensor]


def check_losses(rule: object, losses: LossSums | None, tasks: int) -> LossSums:
    """Losses for a rule that needs them.

    Raises:
        RuleError: There are none, or they are no pair of `[T]`.
    """
    fits = isinstance(losses, tuple) and [getattr(part, "shape", None) for part in losses] == [(tasks,)] * 2
    if losses is None or not fits:
        raise RuleError(
            f"The rule {rule!r} looks at the tasks' losses",
            expected=f"ortho.resolve(losses=(sums, counts)), two tensors [{tasks}]: each task's summed losses and what "
            "they count, over this rank's part of the step",
            found="no losses" if losses is None else _shown(losses),
            todo="give them; in a trainer with ResolveMixin set `self.task_losses` and add the losses in compute_loss; "
            "or take a rule without losses (`balanced`)",
        )
    return losses


def mean_losses(losses: LossSums, tasks: Sequence[str], present: Tensor, device: torch.device) -> Tensor:
    """Each task's mean loss over the step and all ranks. A collective.

    They are brought to the CPU: one synchronisation, at the end of a backward that a rule with losses waits for.
    In return a loss that a rule cannot take is named in its own step, and a rule's state is a few plain numbers.

    Args:
        losses: This rank's sums and counts.
        tasks: Names of the T tasks.
        present: `[T]` bool: tasks with rows on any rank.
        device: Where collectives run.

    Returns:
        `[T]` float32, the same on all ranks; NaN for a task that is absent or whose losses count nothing.

    Raises:
        RuleError: A loss is NaN or infinite; names the task.
    """
    sums, counts = summed(torch.stack([part.detach().cpu().double() for part in losses]), device)
    there = present & (counts > 0)
    means = (sums / counts).float()
    broken = (there & ~means.isfinite()).nonzero()
    if len(broken):
        task = int(broken[0])
        raise refused(tasks[task], float(means[task]), "finite losses", "look at the task's rows, or lower the rate")
    return torch.where(there, means, torch.nan)


def check_none_missing(losses: Tensor | None, gram: Tensor, tasks: Sequence[str]) -> None:
    """Check that every task with a gradient has a loss: a rule would take it for one that has not moved, or for absent.

    Args:
        losses: What `mean_losses` gave; None for a rule that does not look at them.
        gram: `[N, S, S]`; the first T of S are the tasks' gradients of this step.
        tasks: Names of the T tasks.

    Raises:
        RuleError: A task has none; names it.
    """
    if losses is None:
        return
    without = losses.isnan().nonzero().flatten().tolist()
    # Where all tasks have losses, which is the rule, nothing waits for an accelerator here.
    moved = (gram.diagonal(dim1=1, dim2=2).amax(0) > 0).cpu() if without else None
    for task in without:
        if moved is not None and bool(moved[task]):
            raise RuleError(
                f"Task {tasks[task]!r} has a gradient in this step, and no loss",
                expected="a loss for every task that has rows: the rule weighs tasks by their losses",
                found="a count of 0, over all ranks",
                todo="add the losses of all tasks (`TaskLosses.add`, or `resolve(losses=(sums, counts))`), or take a "
                "rule that does not look at them (`balanced`)",
            )


def refused(task: str, loss: float, expected: str, todo: str) -> RuleError:
    """The error for a loss that a rule cannot take."""
    return RuleError(
        f"The loss of task {task!r} cannot be used by the rule", expected=expected, found=f"{loss:g}", todo=todo
    )


def _shown(losses: object) -> str:
    if isinstance(losses, Tensor):
        return f"one tensor {list(losses.shape)}"
    if isinstance(losses, tuple):
        return ", ".join(str(list(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in losses) or "()"
    return type(losses).__name__
