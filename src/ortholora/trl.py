"""`from ortholora.trl import OrthoSFTTrainer`: TRL's trainers with task gradients. Needs the extra `ortholora[trl]`."""

from __future__ import annotations

from ortholora.errors import UserError

try:
    import trl as _trl  # noqa: F401  (the package, not this module)
except ImportError as error:
    raise UserError(
        "ortholora.trl needs TRL",
        expected="the package trl",
        found=str(error),
        todo="pip install 'ortholora[trl]'",
    ) from error

from ortholora.trainers.sft import OrthoSFTTrainer as OrthoSFTTrainer
