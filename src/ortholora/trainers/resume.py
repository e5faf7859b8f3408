"""The file beside a Trainer's checkpoint that lets Ortho-LoRA go on as if it had never stopped."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ortholora.errors import UserError
from ortholora.files import replace_file

STATE_FILE = "ortholora_state.pt"


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write a state into a checkpoint's folder, which is made if need be.

    Raises:
        UserError: It holds an object that would not be read back.
    """
    state = _plain(state, "the state")
    checkpoint.mkdir(parents=True, exist_ok=True)
    replace_file(checkpoint / STATE_FILE, lambda stream: torch.save(state, stream))


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """Read what `write_state` wrote; None if the checkpoint is not one of Ortho-LoRA.

    Raises:
        UserError: The file is cut off or of another kind.
    """
    path = checkpoint / STATE_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _unreadable(
            checkpoint, "objects other than tensors and plain data: a pickle, which could run code"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise _unreadable(checkpoint, f"{type(error).__name__}: {str(error)[:200]}") from error
    return state


def _unreadable(checkpoint: Path, found: str) -> UserError:
    return UserError(
        f"The checkpoint {checkpoint} cannot be resumed",
        expected=f"a complete checkpoint with {STATE_FILE}",
        found=found,
        todo=f"delete {checkpoint} to go on from the checkpoint before it",
    )


#: What `torch.load(weights_only=True)` builds, of what a state is made of.
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.Tensor,
    torch.nn.Parameter,
    torch.Size,
    torch.dtype,
    torch.device,
)


def _plain(value: Any, where: str) -> Any:
    """The state with NumPy's scalars as Python's; one that could be written and never be read back is refused."""
    if type(value) in (dict, OrderedDict):
        return {_plain(key, where): _plain(part, f"{where}[{key!r}]") for key, part in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_plain(part, where) for part in value)
    if isinstance(value, np.generic):
        return value.item()
    if type(value) not in _PLAIN:
        raise UserError(
            f"A checkpoint cannot keep {where}",
            expected="tensors, numbers, texts and None, in dicts, lists, tuples and sets: nothing else is read back",
            found=f"{type(value).__module__}.{type(value).__qualname__}",
            todo="say the same in tensors and numbers in the rule's `state_dict()`, or the trainer's `resume_state()`",
        )
    return value
