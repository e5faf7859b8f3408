"""`from ortholora.trl import OrthoSFTTrainer`: TRL's trainers with task gradients. Needs the extra `ortholora[trl]`."""

from __future__ import annotations

from ortholora.errors import missing_extra

try:
    import trl as _trl  # noqa: F401  (the package, not this module)
except ImportError as _error:
    raise missing_extra("ortholora.trl", "trl", _error) from _error

from ortholora.trainers.sft import OrthoSFTTrainer as OrthoSFTTrainer
