"""Whether a checkpoint can be gone on from: nothing is missing in it, cut off or damaged. Found out before it is read.

The Trainer goes on without a word where a file is not there (the optimizer's, the learning rate's), and fails with an
error of pickle, JSON or zip where one is damaged.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from safetensors import safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, safe_globals

from ortholora.config.stored import Stored, read_stored
from ortholora.errors import UserError, listing
from ortholora.models.saving import ADAPTER
from ortholora.trainers.checkpoints import checkpoints, step_of
from ortholora.trainers.resume import STATE_FILE

#: Files without which a run would go on as another one. A Trainer's own; those of the model are checked in loading.
_NEEDED = (TRAINER_STATE_NAME, OPTIMIZER_NAME, SCHEDULER_NAME, STATE_FILE, ADAPTER)


class StateFile(Stored):
    """What `trainer_state.json` must hold, of all that a Trainer puts there."""

    global_step: Annotated[int, Field(gt=0)]
    max_steps: Annotated[int, Field(gt=0)]
    epoch: Annotated[float, Field(ge=0)]
    log_history: list[dict[str, Any]]
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    train_batch_size: int | None = None
    stateful_callbacks: dict[str, Any] = Field(default_factory=dict)


def check_resumable(checkpoint: Path) -> None:
    """Check a checkpoint's files.

    Raises:
        UserError: One is missing or damaged; the message says which, and what is left to go on from.
    """
    for path in [*(checkpoint / name for name in _NEEDED), *sorted(checkpoint.iterdir())]:
        problem = _problem(path)
        if problem:
            raise _damaged(checkpoint, f"{path.name}, {problem}")
    state = _read_state(checkpoint)
    if step_of(checkpoint) not in (0, state.global_step):
        raise _damaged(checkpoint, f"{TRAINER_STATE_NAME}, which is of step {state.global_step}")


def _problem(path: Path) -> str | None:
    """What is wrong with the outside of a file."""
    if not path.is_file():
        return None if path.is_dir() else "which is not there"
    if path.stat().st_size == 0:
        return "which is empty"
    try:
        if path.suffix in {".pt", ".pth"}:  # what `torch.save` writes: a zip archive with a checksum for each part
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                return f"damaged in {damaged}"
            with safe_globals():  # what a Trainer allows when it reads them
                if foreign := get_unsafe_globals_in_checkpoint(path):
                    return f"which would run code ({listing(sorted(foreign), 3)})"
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
    except Exception as error:  # of zip and zlib, struct, safetensors: a damaged file fails anywhere
        return f"cut off or damaged after {path.stat().st_size} bytes ({type(error).__name__}: {error})"
    return None


def _read_state(checkpoint: Path) -> StateFile:
    path = checkpoint / TRAINER_STATE_NAME
    state = read_stored(path, TypeAdapter(StateFile), "the state of a Trainer", _way_out(checkpoint))
    try:
        TrainerState.load_from_json(str(path))
    except Exception as error:  # keys of another version of transformers, and values that it does not take
        raise _damaged(checkpoint, f"{path.name}, which cannot be read: {type(error).__name__}: {error}") from None
    return state


def _damaged(checkpoint: Path, found: str) -> UserError:
    return UserError(
        f"The checkpoint {checkpoint} is damaged",
        expected="the complete files of a checkpoint",
        found=found,
        todo=_way_out(checkpoint),
    )


def _way_out(checkpoint: Path) -> str:
    """Only the damaged checkpoint is given up, and it is said what that costs."""
    others = [path for path in checkpoints(checkpoint.parent) if path.name != checkpoint.name]
    left = f"{others[-1].name} is gone on from" if others else "there is no other, so the run begins anew"
    return f"restore the file, or move {checkpoint} away and start the same command again: {left}"
