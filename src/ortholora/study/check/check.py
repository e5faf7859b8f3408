"""Do what `train` does before it trains, and say what would come of it; then a few steps that nobody keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.errors import UserError
from ortholora.runs.arguments import training_arguments
from ortholora.runs.build import build_trainer
from ortholora.runs.progress import Silent
from ortholora.runs.train import check_folder
from ortholora.runs.workspace import Workspace
from ortholora.study.check.cost import Measured, Parts, measure_steps, parts_of
from ortholora.study.check.findings import Findings
from ortholora.study.check.plan import Plan, plan_of
from ortholora.study.check.rows import look_at_cuts, look_at_rows
from ortholora.study.diagnose.training import plain
from ortholora.study.methods import check_rule, methods_of
from ortholora.study.train import runs_of
from ortholora.trainers.cost import available_memory_bytes
from ortholora.trainers.trainer import OrthoTrainer

#: `training.arguments` that would let a few steps evaluate, save or report.
_IDLE = ("eval_", "save_", "load_best", "report_to", "push_to_hub", "hub_", "do_")


def check(
    config: Config,
    tasks: Sequence[TaskData],
    found: Findings,
    out: Path | None = None,
    seeds: Sequence[int] = (),
    measure: bool = True,
) -> None:
    """Look at a training before it is begun.

    Args:
        config: The configuration.
        tasks: Those of its tasks whose data could be read; with fewer than all, only the data are looked at.
        found: Gets what is found, mistakes too: nothing that a user can mend is raised.
        out: The folder that `train` would be given; None: not looked at.
        seeds: The seeds that it would be given; empty: the configuration's.
        measure: Train a few steps, to see whether that works, and what it costs.
    """
    look_at_rows(tasks, found)
    with found.attempt():
        check_rule(config.rule)
    if len(tasks) < len(config.tasks):
        return
    _look_at_methods(config, found)
    with found.attempt():
        workspace = Workspace(config, tasks)
        look_at_cuts(workspace, found)
        if out is not None:
            _look_at_folders(workspace, out, seeds or [config.seed], found)
        if not found.errors:
            _look_at_training(workspace, found, (seeds or [config.seed])[0], measure)


def _look_at_methods(config: Config, found: Findings) -> None:
    """What stops `compare` alone is no error: the configuration may be meant for `train`."""
    if len(config.tasks) < 2:
        return
    try:
        methods_of(config)
    except UserError as error:
        found.warnings.append(f"`compare` would refuse this: {error.what} ({error.found}); to do: {error.todo}")


def _look_at_folders(workspace: Workspace, out: Path, seeds: Sequence[int], found: Findings) -> None:
    for run in runs_of(workspace.config, out, seeds):
        with found.attempt():
            check_folder(run, workspace)
        if run.finished:
            found.notes.append(f"{run.folder} holds a finished run: `train` would keep it and train nothing")


def _look_at_training(workspace: Workspace, found: Findings, seed: int, measure: bool) -> None:
    """Build the trainer, look at its plan and its capture, and let it go a few steps."""
    config = workspace.config
    training_arguments(config, Path("checkpoints"), seed, 1)
    few = Workspace(_unrecorded(config), workspace.tasks, like=workspace)
    with tempfile.TemporaryDirectory(prefix="ortholora-check-") as scratch:
        (run,) = runs_of(config, Path(scratch), [seed])
        trainer = build_trainer(run, few, Silent())
        plan, parts = plan_of(trainer), parts_of(trainer, getattr(torch, config.capture.buffer_dtype))
        found.facts["plan"] = asdict(plan)
        _look_at_capture(trainer, found, measure)
        found.facts["memory"] = _memory(trainer, parts, None)
        if measure:
            measured = measure_steps(trainer, plan, parts)
            found.facts["memory"] = _memory(trainer, parts, measured)
            found.facts["time"] = _time(plan, measured)
    _look_at_memory(found)


def _unrecorded(config: Config) -> Config:
    """The configuration without evaluations, checkpoints and logs."""
    config = plain(config)
    kept = {key: value for key, value in config.training.arguments.items() if not key.startswith(_IDLE)}
    return config.model_copy(update={"training": config.training.model_copy(update={"arguments": kept})})


def _look_at_capture(trainer: OrthoTrainer, found: Findings, measure: bool) -> None:
    assert trainer.ortho is not None
    found.facts["capture"] = {
        "summary": trainer.ortho.summary().splitlines(),
        "layers": trainer.ortho.capture_by_layer(),
        "tried_out": measure,
    }


def _memory(trainer: OrthoTrainer, parts: Parts, measured: Measured | None) -> dict[str, object]:
    """Bytes by part. Of the whole only what is known: without steps it is a lower bound."""
    whole, activations, rest = parts.frozen + parts.trained + parts.of_training, None, None
    if measured is not None and measured.before is not None and measured.activations is not None:
        activations = measured.activations
        rest = max(0, measured.before - parts.frozen - parts.trained)
        whole += activations + rest
    return {
        "device": str(trainer.args.device),
        "bytes": {**asdict(parts), "activations": activations, "rest": rest},
        "estimate": whole,
        "is_lower_bound": activations is None,
        "available": available_memory_bytes(),
    }


def _time(plan: Plan, measured: Measured) -> dict[str, object]:
    return {
        "measured_steps": measured.steps,
        "step_seconds": measured.step_seconds,
        "training_seconds": measured.step_seconds * plan.steps,
    }


def _look_at_memory(found: Findings) -> None:
    memory = found.facts["memory"]
    if memory["available"] is not None and memory["estimate"] > memory["available"]:
        needed, available = (f"{memory[key] / 1e9:.1f} GB" for key in ("estimate", "available"))
        found.warnings.append(f"training needs about {needed}, and {available} are available on {memory['device']}")
