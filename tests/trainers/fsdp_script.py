"""Started by `test_fsdp.py` with torchrun: trains the tiny tasks with a sharded base, and writes down what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from ddp_script import METHODS, StopAfter

import language_workspaces
import workspaces
from sharding_on_cpu import FSDP2, on_the_cpu


def trained(out: Path, run: dict[str, Any], fsdp: bool) -> dict[str, Any]:
    """One run, gone on with where its folder has a checkpoint."""
    sections = run["sections"]
    if fsdp:
        training = sections.get("training", {})
        sections["training"] = {**training, "arguments": {"fsdp": "full_shard", "fsdp_config": dict(FSDP2)}}
    if run.get("language"):
        made = language_workspaces.trainer(out / "run", METHODS[run["method"]], **sections)
    else:
        made = workspaces.trainer(out / "run", METHODS[run["method"]], head_dropout=0.0, **sections)
    if "stop_after" in run:
        made.add_callback(StopAfter(run["stop_after"]))
    checkpoints = sorted((out / "run" / "checkpoints").glob("checkpoint-*"))
    made.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    scores = made.evaluate()
    made.save_model(str(out / "model"))
    first = f"loss/{made.tasks[0].data.name}"
    return {
        "scores": scores,
        "losses": [entry[first] for entry in made.state.log_history if first in entry],
        "tokens": made.tokens.tolist(),
        "kinds": {type(p).__name__ for p in made._bare_model().parameters()},
        "switches": [name for name in os.environ if "FSDP" in name],
    }


def main(out: str, runs: str) -> None:
    torch.set_num_threads(1)
    fsdp = "RANK" in os.environ
    if fsdp:
        on_the_cpu()
    workspaces.workspace(), language_workspaces.workspace()  # written now: later only the first process saves a model
    found = [trained(Path(out) / run["folder"], run, fsdp) for run in json.loads(runs)]
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(found, Path(out) / "result.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)  # the teardown of gloo aborts or hangs now and then (docs/scaling.md)


if __name__ == "__main__":
    main(*sys.argv[1:])
