"""The file beside a Trainer's checkpoint that lets Ortho-LoRA go on as if it had never stopped."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from ortholora.errors import UserError
from ortholora.files import replace_file

STATE_FILE = "ortholora_state.pt"


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write a state into a checkpoint's folder, which is made if need be."""
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
        # Our own file, beside the optimizer's; a rule's state may hold any Python object.
        return torch.load(path, map_location="cpu", weights_only=False)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The checkpoint {checkpoint} cannot be resumed",
            expected=f"a complete checkpoint with {STATE_FILE}",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            todo=f"delete {checkpoint} to go on from the checkpoint before it",
        ) from error
