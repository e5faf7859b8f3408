"""Workspaces over the tiny language model and its tasks, for tests of models and training."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from ortholora.config.file import load_config
from ortholora.data.read import read_tasks, split_config
from ortholora.runs.build import build_trainer
from ortholora.runs.method import Method
from ortholora.runs.progress import Silent
from ortholora.runs.run import Run
from ortholora.runs.workspace import Workspace
from ortholora.trainers.trainer import OrthoTrainer
from tiny_language import TASKS, language_config
from workspaces import ORTHO


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ortholora-language-"))


def workspace(**sections: Any) -> Workspace:
    """A workspace of the tiny language configuration with some sections changed."""
    settings = split_config(load_config(language_config(folder(), **sections)), base=folder(), data_dir=None)
    return Workspace(settings, read_tasks(settings, base=folder(), data_dir=None))


def trainer(
    out: Path, method: Method = ORTHO, names: tuple[str, ...] = TASKS, seed: int = 0, **sections: Any
) -> OrthoTrainer:
    """A trainer of the tiny language configuration, not yet started."""
    return build_trainer(Run(method, names, seed, out), workspace(**sections), Silent())
