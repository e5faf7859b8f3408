"""The Trainer, metrics, and one run from configuration to result.

Names are loaded on first use: the mixin and the SFT trainer do without the packages that `OrthoTrainer`'s metrics need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {"OrthoTrainer": "ortholora.trainers.trainer", "ResolveMixin": "ortholora.trainers.mixin"}
__all__ = ["OrthoTrainer", "ResolveMixin"]

if TYPE_CHECKING:
    from ortholora.trainers.mixin import ResolveMixin
    from ortholora.trainers.trainer import OrthoTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ortholora.trainers' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
