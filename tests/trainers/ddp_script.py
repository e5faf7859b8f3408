"""Started by `test_ddp.py`, alone or with torchrun: trains the tiny tasks and writes down what came out."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import language_workspaces
import workspaces
from ortholora.runs.method import Method

METHODS = {"joint": Method("joint"), "ortho": Method("ortho", "ortho"), "sum": Method("sum", "sum")}
METHODS["balanced-signal"] = Method("balanced-signal", "balanced-signal")
METHODS["gradnorm"] = Method("gradnorm", "gradnorm(alpha=2, start=1)")


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def leave(ending: str) -> None:
    """End a process that trained under DDP; `teardown.py` measures the ways that are not used here."""
    torch.distributed.barrier()
    if ending == "exit":
        # A gloo thread may abort a process that leaves (docs/scaling.md); this is about what was trained.
        sys.stdout.flush()
        os._exit(0)
    if ending == "collect":
        gc.collect()
    if ending in ("collect", "destroy"):
        torch.distributed.destroy_process_group()


def main(out: str, method: str, settings: str, stop_after: str, ending: str = "exit") -> None:
    torch.set_num_threads(1)
    sections = json.loads(settings)
    if sections.pop("language", False):
        trainer = language_workspaces.trainer(Path(out) / "run", METHODS[method], **sections)
    else:
        trainer = workspaces.trainer(Path(out) / "run", METHODS[method], head_dropout=0.0, **sections)
    first = f"loss/{trainer.tasks[0].data.name}"
    checkpoints = sorted((Path(out) / "run" / "checkpoints").glob("checkpoint-*"))
    if int(stop_after):
        trainer.add_callback(StopAfter(int(stop_after)))
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    scores = trainer.evaluate()
    losses = [entry[first] for entry in trainer.state.log_history if first in entry]
    if trainer.args.process_index == 0:
        weights = {name: p.detach() for name, p in trainer._bare_model().named_parameters() if p.requires_grad}
        result = {"weights": weights, "scores": scores, "losses": losses, "tokens": trainer.tokens.tolist()}
        torch.save(result, Path(out) / "result.pt")
    if torch.distributed.is_initialized():
        if ending == "collect":
            del trainer
        leave(ending)


if __name__ == "__main__":
    main(*sys.argv[1:])
