"""What a launcher (torchrun, accelerate launch) says about this process. Without torch: a message is instant."""

from __future__ import annotations

import os

from ortholora.errors import UserError


def launched() -> int:
    """How many processes the launcher started for this command; 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def index() -> int:
    """Which of them this one is: 0 is the first, which alone writes and prints."""
    return _number("RANK", 0) if launched() > 1 else 0


def check_alone(command: str) -> None:
    """Check that a command for one process was started as one.

    Args:
        command: Its name, for the message.

    Raises:
        UserError: A launcher started several.
    """
    if launched() > 1:
        jobs = "; `--jobs N` does N of its runs at once" if command == "compare" else ""
        raise UserError(
            f"`{command}` is done by one process",
            expected=f"`ortholora {command}`, started as it is",
            found=f"WORLD_SIZE={os.environ['WORLD_SIZE']}: a start with torchrun or accelerate launch",
            todo=f"start it without them{jobs}. `train` and OrthoTrainer run in several processes",
        )


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise
