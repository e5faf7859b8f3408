"""The configuration's `training:` section → `transformers.TrainingArguments`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from ortholora.config.schema import Config
from ortholora.errors import UserError
from ortholora.models.passed_on import check_types
from ortholora.runs.trackers import check_trackers
from ortholora.trainers.selection import SCORE, Selection

#: The class with the fields and their types, whatever builds its objects.
_DECLARED = TrainingArguments


def training_arguments(config: Config, folder: Path, seed: int, rows: int) -> TrainingArguments:
    """Build the arguments of a run.

    Args:
        config: The whole configuration.
        folder: Where checkpoints go.
        seed: Seed of weights, dropout and data order.
        rows: Rows of a step (for the logs; the sampler decides).

    Raises:
        UserError: `training.arguments` has a key that `TrainingArguments` does not know, or a wrong value; or a
            tracker is asked for that is not installed.
    """
    section = config.training
    _check_owned(section.arguments)
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": section.steps,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": 64,
        "learning_rate": section.learning_rate,
        "weight_decay": section.weight_decay,
        "warmup_steps": section.warmup_steps,
        "lr_scheduler_type": section.schedule,
        "max_grad_norm": section.max_grad_norm,
        "logging_steps": section.log_every,
        "bf16": config.dtype == "bfloat16",
        "use_cpu": not torch.accelerator.is_available(),
        "seed": seed,
        "data_seed": seed,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "report_to": list(section.report_to),
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        **_evaluation(config),
        **section.arguments,
    }
    unknown = sorted(set(options) - set(inspect.signature(TrainingArguments).parameters))
    if unknown:
        raise UserError(
            f"Unknown key in training.arguments: {', '.join(unknown)}",
            expected="arguments of transformers.TrainingArguments",
            found=", ".join(unknown),
            todo="correct or remove the key",
        )
    # Declared as text, but `true` is what newer versions ask for.
    typed = {key: value for key, value in section.arguments.items() if (key, value) != ("fsdp", True)}
    check_types("training.arguments", typed, _DECLARED)
    try:
        arguments = TrainingArguments(**options)
        _try_out(arguments)
    except Exception as error:  # whatever a value makes transformers, torch or an optimizer's package raise
        raise UserError(
            "The training settings do not fit together",
            expected="values that transformers.TrainingArguments takes on this machine",
            found=f"{type(error).__name__}: {str(error).strip()[:300]}",
            todo="correct `training:` in the configuration",
        ) from error
    check_trackers(arguments)
    return arguments


def _try_out(arguments: TrainingArguments) -> None:
    """Make optimizer and schedule for one number: a wrong value shows here, and not inside of the training."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    if "optim_dict" in options:  # of optimizers that are made layer by layer, for the real model
        return
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **{"weight_decay": arguments.weight_decay, **options})
    get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        arguments.get_warmup_steps(arguments.max_steps),
        arguments.max_steps,
        cast("dict[str, Any]", arguments.lr_scheduler_kwargs or {}),
    )


#: Arguments that the run itself decides, and what to set instead.
_OWNED = {
    "seed": "--seeds",
    "data_seed": "--seeds",
    "output_dir": "--out",
    "max_steps": "training.steps",
    "num_train_epochs": "training.steps",
    "gradient_accumulation_steps": "mixing.micro_batches",
    "per_device_train_batch_size": "mixing.rows_per_task",
    "save_only_model": "nothing: a run could not be resumed",
    "remove_unused_columns": "nothing: batches are built by the tool",
    "label_smoothing_factor": "nothing: the heads compute their own losses",
}


def _check_owned(arguments: dict[str, Any]) -> None:
    owned = [key for key in arguments if key in _OWNED]
    if owned:
        raise UserError(
            f"training.arguments.{owned[0]} cannot be set",
            expected="arguments that the tool does not decide itself",
            found=f"{owned[0]}: {arguments[owned[0]]!r}",
            todo=f"use {_OWNED[owned[0]]}",
        )
    if arguments.get("report_to", ()) is None:  # transformers 4 takes it for every tracker that is installed
        raise UserError(
            "training.arguments.report_to is empty",
            expected="the name of a tracker, or none",
            found="no value",
            todo="name trackers in `training.report_to`, or remove the key",
        )


def selection_of(config: Config) -> Selection:
    """How the best checkpoint is chosen."""
    return Selection(config.training.selection_by, config.training.selection_weights)


def _evaluation(config: Config) -> dict[str, Any]:
    section = config.training
    options: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no"}
    if section.eval_every:
        options |= {"eval_strategy": "steps", "eval_steps": section.eval_every}
    if section.save_every:
        options |= {"save_strategy": "steps", "save_steps": section.save_every}
    if section.selection == "best":
        # The best checkpoint can only be kept if every evaluated step is saved.
        options |= {
            "save_strategy": "steps",
            "save_steps": section.eval_every,
            "load_best_model_at_end": True,
            "metric_for_best_model": "average" if selection_of(config).is_plain else SCORE,
            "greater_is_better": True,
        }
    return options
