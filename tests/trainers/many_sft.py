"""Runs of `OrthoSFTTrainer` in several processes: with a sharded base, also in one, or with a copy in each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from language import adapted, lora_weights, rows, sft_trainer
from sharding_on_cpu import FSDP2, on_the_cpu


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def trained(out: Path, run: dict[str, Any], ranks: int) -> dict[str, Any]:
    """One run, gone on with where its folder has a checkpoint. A step has the same rows in any number of processes."""
    run = dict(run)
    stop, asked = run.pop("stop_after", 0), run.pop("evaluate_first", False)
    dtype = getattr(torch, run.pop("dtype", "float32"))
    each = run.pop("rows", 12) // ranks
    run |= {"per_device_train_batch_size": each, "per_device_eval_batch_size": 1}  # a loss for each row
    if ranks > 1:
        run |= {"fsdp": "full_shard", "fsdp_config": dict(FSDP2)}
    model = adapted(attention="sdpa")
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    made = sft_trainer(out / "run", rows(24), model=model, eval_dataset=rows(10, seed=5), **run)
    if stop:
        made.add_callback(Stop(stop))
    before = made.evaluate()["eval_loss"] if asked else 0.0
    made.train(resume_from_checkpoint=any((out / "run").glob("checkpoint-*")) or None)
    scores = made.evaluate()
    made.save_model(str(out / "model"))
    return {
        "before": before,
        "loss": scores["eval_loss"],
        "logs": made.state.log_history,
        "kinds": {type(p).__name__ for p in made.model.parameters()},
        "best": made.state.best_global_step,
        "switch": os.environ.get("ACCELERATE_USE_FSDP"),
    }


def sharded(out: Path, runs: list[dict[str, Any]], ranks: int) -> None:
    """What each of several processes does: the runs one after the other; the first writes down what came out."""
    on_the_cpu()
    found = [trained(out / run.pop("folder"), run, ranks) for run in runs]
    if os.environ["RANK"] == "0":
        torch.save(found, out / "result.pt")


def replicated(out: Path, changes: dict[str, Any]) -> None:
    """What each of several processes does under DDP; the first writes down what came out."""
    made = sft_trainer(out, **changes)
    made.train()
    model = made.accelerator.unwrap_model(made.model)
    if os.environ["RANK"] == "0":
        torch.save({"weights": lora_weights(model), "logs": made.state.log_history}, out / "result.pt")
