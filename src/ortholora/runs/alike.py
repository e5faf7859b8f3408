"""Several processes do one run: whether all have the same settings and data, and see the same folder."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from ortholora.errors import UserError
from ortholora.ranks.together import count, on_all

#: Seconds until a file that another machine wrote is seen: network file systems remember what was not there.
_PATIENCE = 60.0


def check_alike(mark: str, written: Path) -> None:
    """Check what must be the same in all processes; nothing in one.

    Args:
        mark: The run's fingerprint, as this process has it.
        written: A file that the first process has written.

    Raises:
        UserError: A process has other settings or other data, or does not see the file. Raised in all of them.
    """
    if count() == 1:
        return
    found = on_all(lambda: (mark, socket.gethostname(), _seen(written)))
    for process, (other, host, seen) in enumerate(found):
        who = f"process {process} on {host}"
        if other != found[0][0]:
            raise UserError(
                "The processes of the training have different settings or different data",
                expected=f"what the first of them has, on {found[0][1]}, in all {count()}",
                found=f"another configuration, other options or other rows in the data files: {who}",
                todo="give the same command, configuration and data to every machine",
            )
        if not seen:
            raise UserError(
                f"{written.parent} is not the same folder on all machines",
                expected=f"{written.name}, which the first process wrote on {found[0][1]}",
                found=f"no such file after {_PATIENCE:.0f} s: {who}",
                todo="give an --out in a folder that all machines share: checkpoints are written and read by all",
            )


def _seen(path: Path) -> bool:
    give_up = time.monotonic() + _PATIENCE
    while not path.is_file():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.2)
    return True
