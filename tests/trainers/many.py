"""Runs of the tiny tasks, in this process or in several that do them one after the other; and what came out of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import language_workspaces
import workspaces
from forked import in_ranks
from ortholora.runs.method import Method
from ortholora.trainers.trainer import OrthoTrainer
from sharding_on_cpu import FSDP2, on_the_cpu

METHODS = {"joint": Method("joint"), "ortho": Method("ortho", "ortho"), "sum": Method("sum", "sum")}
METHODS["balanced-signal"] = Method("balanced-signal", "balanced-signal")
METHODS["gradnorm"] = Method("gradnorm", "gradnorm(alpha=2, start=1)")

#: `method` and `sections` of the configuration; it may be of a `language` model, shard its base (`fsdp`), or end after
#: a step (`stop_after`); `folder`: where it goes among the others.
Plan = dict[str, Any]


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def trainer_of(out: Path, run: Plan) -> OrthoTrainer:
    """The trainer of a run, not yet started."""
    sections, method = dict(run["sections"]), METHODS[run["method"]]
    if run.get("fsdp"):
        sharding = {"fsdp": "full_shard", "fsdp_config": dict(FSDP2)}
        sections["training"] = {**sections.get("training", {}), "arguments": sharding}
    if run.get("language"):
        return language_workspaces.trainer(out / "run", method, **sections)
    return workspaces.trainer(out / "run", method, head_dropout=0.0, **sections)


def trained(out: Path, run: Plan) -> dict[str, Any]:
    """Do a run, or go on with it where its folder has a checkpoint; its model is saved in `out/model`."""
    made = trainer_of(out, run)
    if "stop_after" in run:
        made.add_callback(StopAfter(run["stop_after"]))
    start = max((out / "run" / "checkpoints").glob("checkpoint-*"), default=None)
    made.train(resume_from_checkpoint=None if start is None else str(start))
    scores = made.evaluate()
    made.save_model(str(out / "model"))
    first, parameters = f"loss/{made.tasks[0].data.name}", dict(made._bare_model().named_parameters())
    return {
        "start": None if start is None else start.name,
        "scores": scores,
        "losses": [entry[first] for entry in made.state.log_history if first in entry],
        "tokens": made.tokens.tolist(),
        "kinds": {type(p).__name__ for p in parameters.values()},
        "switches": [name for name in os.environ if "FSDP" in name],
        "weights": {name: p.detach() for name, p in parameters.items() if p.requires_grad and not run.get("fsdp")},
    }


def trained_by(ranks: int, out: Path, runs: list[Plan]) -> list[dict[str, Any]]:
    """Do the runs one after the other in several processes."""
    in_ranks(ranks, _each, out, runs)
    return torch.load(out / "result.pt", weights_only=False)


def _each(out: Path, runs: list[Plan]) -> None:
    on_the_cpu()
    workspaces.workspace(), language_workspaces.workspace()  # written now: later only the first process saves a model
    found = [trained(out / run["folder"], run) for run in runs]
    if os.environ["RANK"] == "0":
        torch.save(found, out / "result.pt")
