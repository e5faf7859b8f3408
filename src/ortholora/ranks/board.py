"""What processes tell each other outside of collectives, which wait for ever (or fail) where one of them is gone.

A board is the key-value store through which the launcher's processes find each other. On it stands who they are, how
each one ended, and who has spoken: of a message that all have to tell, one tells it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any

from ortholora.errors import LostProcessError
from ortholora.files import is_alive
from ortholora.ranks.launcher import index, launched

#: Seconds by which the first process, at whose terminal people sit, is ahead of the others in telling something.
_HEAD_START = 2.0
#: Seconds in which the end of another process shows.
_LOOKING = 3.0
#: Seconds to wait for the others at the end of a command that went well, and of one that did not.
_WAITING = {True: 120.0, False: 5.0}
#: How gloo and NCCL say that a process did not answer in time, and that it is not there any more.
_TIMED_OUT = re.compile(r"[Tt]imed? ?out|[Tt]imeout")
_BROKEN = re.compile(r"gloo|NCCL|ncclRemote|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|recvValue|TCPStore")


@cache
def _board() -> Any:
    """The store of this start, or of this restart."""
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=60)))
    return dist.PrefixStore(f"ortholora/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def may_speak() -> bool:
    """Whether this process is the one to tell what all of them know. The first that asks is, then nobody any more."""
    if launched() == 1:
        return True
    if index() > 0:
        time.sleep(_HEAD_START)
    try:
        return _board().add("spoken", 1) == 1
    except Exception:  # of the network, or of a store that is gone: better told twice than never
        return True


def introduce() -> None:
    """Say which process of which machine this one is, for the others, should it be gone."""
    if launched() > 1:
        _board().set(f"who/{index()}", json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))


def end(code: int, wait: bool = True) -> bool:
    """Say how this process ends, and wait for the others to end, too.

    Args:
        code: Its exit code.
        wait: Whether to wait at all.

    Returns:
        Whether all came to their end, so that no one waits in a collective any more.
    """
    try:
        board = _board()
        board.set(f"end/{index()}", str(code))
        if not wait:
            return False
        board.wait([f"end/{other}" for other in range(launched())], timedelta(seconds=_WAITING[code == 0]))
    except Exception:  # of the network: torch has many kinds
        return False
    return True


def ended_elsewhere() -> int | None:
    """The exit code of another process that ended with a mistake, and says why itself; None if there is none."""
    with suppress(Exception):
        board = _board()
        for other in range(launched()):
            if other != index() and board.check([f"end/{other}"]):
                code = int(board.get(f"end/{other}"))
                if code:
                    return code
    return None


def why_lost(error: Exception) -> LostProcessError | int | None:
    """What a failed collective means.

    Args:
        error: What it raised.

    Returns:
        The message about a process that is gone, or did not answer; or the exit code of one that says itself why it
        ended; None: the error is this process's own.
    """
    give_up = time.monotonic() + _LOOKING
    while time.monotonic() < give_up:
        code = ended_elsewhere()
        if code is not None:
            return code
        gone = _gone()
        if gone:
            # The launcher looks now and then who ended, and blames the first it finds: it must not be this one.
            time.sleep(_LOOKING / 3)
            return _lost(", ".join(gone))
        time.sleep(0.1)
    if _TIMED_OUT.search(str(error)):
        return _silent(error)
    return _lost("a process of another machine") if _BROKEN.search(str(error)) else None


def _gone() -> Sequence[str]:
    """The other processes that are gone without a word. Each machine knows its own, and writes it on the board."""
    found = []
    with suppress(Exception):
        board = _board()
        for other in range(launched()):
            if other == index() or not board.check([f"who/{other}"]) or board.check([f"end/{other}"]):
                continue
            who = json.loads(board.get(f"who/{other}"))
            if who["host"] == socket.gethostname() and not is_alive(who["pid"]):
                board.set(f"gone/{other}", "")
            if board.check([f"gone/{other}"]):
                found.append(f"rank {other} of {launched()} (process {who['pid']} on {who['host']})")
    return found


def _lost(who: str) -> LostProcessError:
    return LostProcessError(
        f"The training lost {who}",
        expected=f"{launched()} processes until the end",
        found="it ended without a word: killed from outside, out of memory, or crashed; the launcher's report below "
        "has its signal or exit code",
        todo="start the same command again: it goes on from the last checkpoint, also with another number of processes",
    )


def _silent(error: Exception) -> LostProcessError:
    return LostProcessError(
        "A process of the training did not answer",
        expected=f"{launched()} processes that come to the same place within `training.arguments.ddp_timeout` seconds",
        found=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}",
        todo="look at the machines for one that hangs, and start the same command again: it goes on from the last "
        "checkpoint; if evaluation or data take that long, raise `training.arguments.ddp_timeout`",
    )
