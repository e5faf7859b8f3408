"""How often does a process abort when it leaves after a gloo collective? Plain torch, nothing of ours.

python benchmarks/gloo_exit.py --runs 12

Each run starts two processes that end right after an all-reduce, with or without `destroy_process_group()`. A gloo
thread gives the collective's tensor back after the collective, which needs Python's lock; if the interpreter is
leaving by then, CPython ends the thread inside a destructor, and C++ aborts ("terminate called without an active
exception").
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def worker(ending: str) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    dist.all_reduce(torch.ones(1000))
    if ending == "destroy":
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--worker", choices=["leave", "destroy"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(Path(__file__))]
    for ending in ("leave", "destroy"):
        command = [*launch, "--worker", ending]
        codes = [subprocess.run(command, capture_output=True).returncode for _ in range(arguments.runs)]
        print(f"{ending}: {sum(code != 0 for code in codes)} of {arguments.runs} aborted", flush=True)


if __name__ == "__main__":
    main()
