"""Assemble a run: its model and its trainer, the same for single, joint and every rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from ortholora.config.schema import Config
from ortholora.data.mixing import StepSampler
from ortholora.data.planner import Planner
from ortholora.models.adapted import AdaptedModel
from ortholora.models.build import build_model, make_card
from ortholora.models.card import ModelCard
from ortholora.models.merge import check_mergeable
from ortholora.models.starting import start_from
from ortholora.runs.arguments import selection_of, training_arguments
from ortholora.runs.progress import Progress, ProgressCallback
from ortholora.runs.run import Run
from ortholora.runs.trackers import name_run
from ortholora.runs.workspace import Workspace
from ortholora.trainers.planning import check_layout
from ortholora.trainers.sharded import environment_kept
from ortholora.trainers.trainer import OrthoTrainer


@environment_kept()
def build_trainer(
    run: Run, workspace: Workspace, progress: Progress, model: AdaptedModel | None = None
) -> OrthoTrainer:
    """Assemble model and trainer of a run; a model that is there already is taken."""
    config = workspace.config
    tasks = [workspace.encoded(name) for name in run.tasks]
    card = make_card(config, [task.data for task in tasks])
    quota = workspace.quota()
    rows = [quota[name] for name in run.tasks]
    arguments = training_arguments(config, run.checkpoints, run.seed, sum(rows))
    name_run(run, arguments, config.training.arguments)
    shown = ProgressCallback(progress)
    trainer = OrthoTrainer(
        make_model(config, card, run.seed) if model is None else model,
        arguments,
        tasks=tasks,
        tokenizer=workspace.tokenizer,
        card=card,
        quota=rows,
        rule=run.method.rule,
        block=run.method.block,
        planner=_planner(config, rows, len(workspace.tasks)),
        fused=config.capture.fused,
        buffer_dtype=getattr(torch, config.capture.buffer_dtype),
        head_learning_rate=config.training.head_learning_rate,
        selection=selection_of(config),
        patience_per_task=config.training.patience_per_task,
        callbacks=_callbacks(config, shown),
    )
    shown.passed = trainer.passed
    trainer.remove_callback(PrinterCallback)  # the command line shows progress in its own way
    return trainer


def make_model(config: Config, card: ModelCard, seed: int) -> AdaptedModel:
    """A run's model as its training begins: new, or with what a finished run has learned (`init_from`).

    Raises:
        UserError: They do not go together.
    """
    model = build_model(config, card, seed)
    if config.init_from is not None:
        start_from(Path(config.init_from), model, card)
    return model


@environment_kept()
def check_settings(workspace: Workspace, merged: bool = False, captured: bool = False) -> None:
    """Build a run's model and arguments, and throw them away: a mistake shows before other runs' hours.

    Args:
        workspace: The settings.
        merged: Whether its adapter will be merged with others.
        captured: Whether a rule will want its task gradients.

    Raises:
        UserError: The adapter does not go onto the backbone or cannot be merged, task gradients cannot be captured in
            such micro-batches, or the training settings make no sense.
    """
    config = workspace.config
    training_arguments(config, Path("checkpoints"), 0, 1)
    model = make_model(config, make_card(config, workspace.tasks), 0)
    if merged:
        check_mergeable(model.peft_model)
    if captured:
        check_layout(config.mixing.layout, model, len(workspace.tasks))


def check_plans(workspace: Workspace) -> None:
    """Check that the steps of every run of the workspace can be cut as the configuration says.

    Raises:
        UserError: They cannot.
    """
    config = workspace.config
    names = [task.name for task in workspace.tasks]
    rows = workspace.quota()
    for together in [names, *([name] for name in names)]:
        lengths = [workspace.encoded(name).train.lengths for name in together]
        quota = [rows[name] for name in together]
        StepSampler(together, lengths, quota, 0, _planner(config, quota, len(names)))


def _planner(config: Config, quota: Sequence[int], all_tasks: int) -> Planner:
    """The planner of a run of the tasks with this quota."""
    mixing = config.mixing
    pieces = mixing.micro_batches
    if pieces is not None and len(quota) < all_tasks:
        # A run of few tasks has fewer rows in a step: cut it in proportion, and never below a row each.
        pieces = min(max(1, pieces * len(quota) // all_tasks), sum(quota))
    return Planner(mixing.layout, pieces, mixing.max_tokens, mixing.launch_tokens)


def _callbacks(config: Config, shown: ProgressCallback) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [shown]
    if config.training.patience:
        callbacks.append(EarlyStoppingCallback(config.training.patience))
    return callbacks
