"""Started by `teardown.py` with torchrun: trains the tiny tasks under DDP, and leaves in one of several ways."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch
from many import trainer_of


def leave(ending: str) -> None:
    """End a process that trained under DDP."""
    torch.distributed.barrier()
    if ending == "exit":
        # A gloo thread may abort a process that leaves (docs/scaling.md).
        sys.stdout.flush()
        os._exit(0)
    if ending == "collect":
        gc.collect()
    if ending in ("collect", "destroy"):
        torch.distributed.destroy_process_group()


def main(out: str, method: str, mixing: str, ending: str) -> None:
    torch.set_num_threads(1)
    trainer = trainer_of(Path(out), {"method": method, "sections": {"mixing": json.loads(mixing)}})
    trainer.train()
    trainer.evaluate()
    if ending == "collect":
        del trainer
    leave(ending)


if __name__ == "__main__":
    main(*sys.argv[1:])
