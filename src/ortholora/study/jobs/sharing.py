"""How several runs at once share the machine: threads of the processor, and one device each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

#: The variables that a worker process is started with; torch and the libraries below it read them.
THREADS, DEVICES = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"


def divide(jobs: int, cores: int, threads: int | None, devices: Sequence[str]) -> list[dict[str, str]]:
    """Divide a machine among worker processes.

    Args:
        jobs: Number of workers.
        cores: Cores to share; a worker gets `cores // jobs` threads, one at least.
        threads: Threads of every worker, whatever their number: what the user asked for. None: divide the cores.
        devices: Names of the accelerators; worker `i` gets device `i mod len(devices)`.

    Returns:
        The environment variables of each worker.
    """
    shares = [{THREADS: str(threads or max(1, cores // jobs))} for _ in range(jobs)]
    for worker, share in enumerate(shares):
        if devices:
            share[DEVICES] = devices[worker % len(devices)]
    return shares


def visible_devices(environment: Mapping[str, str], count: int) -> list[str]:
    """Name the accelerators this process sees, as `CUDA_VISIBLE_DEVICES` names them.

    Args:
        environment: The environment variables: the user may have chosen some devices.
        count: How many there are to be seen.
    """
    chosen = [name.strip() for name in environment.get(DEVICES, "").split(",") if name.strip()]
    return chosen[:count] if chosen else [str(index) for index in range(count)]


def divide_this_machine(jobs: int) -> list[dict[str, str]]:
    """Divide the machine that this process runs on; `OMP_NUM_THREADS`, where it is set, stands."""
    threads = torch.get_num_threads()  # the cores, unless somebody asked for something else
    fixed = threads if THREADS in os.environ else None
    return divide(jobs, threads, fixed, visible_devices(os.environ, torch.cuda.device_count()))


def how_shared(shares: Sequence[Mapping[str, str]]) -> str:
    """Say in one sentence how the machine is shared."""
    threads = shares[0][THREADS]
    text = f"{len(shares)} runs at once, {threads} thread{'' if threads == '1' else 's'} each"
    devices = list(dict.fromkeys(share[DEVICES] for share in shares if DEVICES in share))
    if devices:
        text += f", on {len(devices)} device{'' if len(devices) == 1 else 's'}"
    return f"{text}: step times are no measure of cost."
