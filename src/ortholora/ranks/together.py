"""What the processes of a run do together: join, let the first do something alone, agree. All of it is trivial in one.

These are collectives: every process must come here. They go over gloo, so that a training on GPUs waits for nothing.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ortholora.errors import UserError
from ortholora.ranks.launcher import launched

T = TypeVar("T")

#: Seconds after which a process that does not answer is given up; the default of transformers and of torch.
PATIENCE = 1800

_control: Any = None


def join(seconds: object = None) -> None:
    """Join the other processes that the launcher started; nothing where there are none, or where that is done.

    Args:
        seconds: Patience with a process that does not answer (`ddp_timeout`); default, or if it is no number: 1800.

    Raises:
        UserError: The launcher did not say where the others are.
    """
    global _control
    if launched() == 1 or _control is not None:
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but nothing says where the other processes are",
            expected="RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun and accelerate launch set them",
            found=f"no {', '.join(missing)}",
            todo="start with torchrun or accelerate launch; or unset WORLD_SIZE to train in one process",
        )
    from accelerate import PartialState

    whole = isinstance(seconds, int) and not isinstance(seconds, bool) and seconds > 0
    patience = timedelta(seconds=seconds if whole else PATIENCE)  # type: ignore[arg-type]
    # As the Trainer would a moment later: it chooses device and backend, and sets the device.
    PartialState(cpu=not torch.accelerator.is_available(), timeout=patience)
    _control = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=patience)


def part() -> None:
    """Leave the process group, for the end of a process: whatever still holds it goes before it (docs/scaling.md)."""
    global _control
    if _control is not None:
        _control = None
        gc.collect()
        dist.destroy_process_group()


def count() -> int:
    """How many processes have joined."""
    return 1 if _control is None else dist.get_world_size(_control)


def rank() -> int:
    """Which of them this one is."""
    return 0 if _control is None else dist.get_rank(_control)


class FailedElsewhere(Exception):  # noqa: N818 - it is no error of this process
    """Another process failed in what this one waits for, and says why itself."""


def on_first(do: Callable[[], T]) -> T:
    """Let the first process do something, and give every one the result.

    Raises:
        UserError, OSError: It failed; raised in all processes.
        FailedElsewhere: It failed with another error, which is raised in the first process only.
    """
    if count() == 1:
        return do()
    outcome = [_tried(do) if rank() == 0 else None]
    dist.broadcast_object_list(outcome, src=0, group=_control)
    return _value_of(outcome[0])


def on_all(do: Callable[[], T]) -> list[T]:
    """Do something in every process, and give every one all the results, in the order of the processes.

    Raises:
        UserError, OSError: It failed somewhere; the error of the first where it did is raised in all processes.
        FailedElsewhere: The same for other errors, in all but the processes where they were.
    """
    own = _tried(do)
    if count() == 1:
        return [_value_of(own)]
    outcomes: list[Any] = [None] * count()
    dist.all_gather_object(outcomes, own, group=_control)
    if isinstance(own, _Unsaid):
        raise own.error
    return [_value_of(outcome) for outcome in sorted(outcomes, key=lambda o: not isinstance(o, Exception | _Unsaid))]


def on_any(flag: bool) -> bool:
    """Whether it is so in any process."""
    if count() == 1:
        return flag
    shared = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=_control)
    return bool(shared.item())


class _Unsaid:
    """An error of a kind that is not sent: where it was, it is raised with its traceback."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> tuple[object, ...]:
        return _Unsaid, (FailedElsewhere(),)


def _tried(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except (UserError, OSError) as error:
        return error
    except Exception as error:
        return _Unsaid(error)


def _value_of(outcome: Any) -> Any:
    if isinstance(outcome, UserError | OSError):
        raise outcome
    if isinstance(outcome, _Unsaid):
        raise outcome.error
    return outcome
