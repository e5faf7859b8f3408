"""Ortho-LoRA: one LoRA adapter, many tasks, conflicting gradients projected apart (arXiv 2601.09684).

Names are loaded on first use, so that `import ortholora` (and `ortholora --help`) does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ortholora.errors import MissingExtraError, missing_extra
from ortholora.version import __version__ as __version__

_HOMES = {
    "OrthoLora": "ortholora.engine",
    "OrthoSFTTrainer": "ortholora.trl",
    "OrthoTrainer": "ortholora.trainers.trainer",
    "ResolveMixin": "ortholora.trainers.mixin",
    "Rule": "ortholora.engine",
    "RuleContext": "ortholora.engine",
    "StepStats": "ortholora.engine",
    "TaskCollator": "ortholora.trainers.task_column",
    "TaskLosses": "ortholora.trainers.task_losses",
    "load": "ortholora.models.predictor",
    "number_tasks": "ortholora.trainers.task_column",
}
__all__ = [
    "OrthoLora",
    "OrthoSFTTrainer",
    "OrthoTrainer",
    "ResolveMixin",
    "Rule",
    "RuleContext",
    "StepStats",
    "TaskCollator",
    "TaskLosses",
    "load",
    "number_tasks",
]

if TYPE_CHECKING:
    from ortholora.engine import OrthoLora, Rule, RuleContext, StepStats
    from ortholora.models.predictor import load
    from ortholora.trainers.mixin import ResolveMixin
    from ortholora.trainers.sft import OrthoSFTTrainer
    from ortholora.trainers.task_column import TaskCollator, number_tasks
    from ortholora.trainers.task_losses import TaskLosses
    from ortholora.trainers.trainer import OrthoTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ortholora' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except MissingExtraError:
        raise  # says already which one
    except ModuleNotFoundError as error:
        raise missing_extra(f"ortholora.{name}", "cli", error) from error
