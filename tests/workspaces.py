"""Workspaces over the tiny backbone and tasks, for tests of models and training."""

from __future__ import annotations

import functools
import inspect
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ortholora.config.file import load_config
from ortholora.config.schema import Config
from ortholora.data.read import read_tasks
from ortholora.runs.build import build_trainer
from ortholora.runs.method import Method
from ortholora.runs.progress import Silent
from ortholora.runs.run import Run
from ortholora.runs.workspace import Workspace
from ortholora.trainers.trainer import OrthoTrainer
from tiny import tiny_config

JOINT, ORTHO, SUM = Method("joint"), Method("ortho", "ortho"), Method("sum", "sum")
TASKS = ("topic", "pair", "score")
#: transformers 5 renamed the argument.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in inspect.signature(TrainingArguments).parameters
)


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ortholora-tests-"))


def config(**sections: Any) -> Config:
    """The tiny configuration with some sections changed; files live in one folder for the process."""
    return load_config(tiny_config(_folder(), **sections))


def workspace(**sections: Any) -> Workspace:
    """A workspace of the tiny configuration."""
    settings = config(**sections)
    return Workspace(settings, read_tasks(settings, base=_folder(), data_dir=None))


def trainer(
    out: Path, method: Method = ORTHO, names: tuple[str, ...] = TASKS, seed: int = 0, **sections: Any
) -> OrthoTrainer:
    """A trainer of the tiny configuration, not yet started."""
    return build_trainer(Run(method, names, seed, out), workspace(**sections), Silent())


def weights(trainer: OrthoTrainer) -> dict[str, Any]:
    """Copies of the trainable parameters by name."""
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
