"""A run's model into its folder: whole or not at all."""

from __future__ import annotations

from ortholora.files import publish_files
from ortholora.models.saving import save_model
from ortholora.runs.history import write_history
from ortholora.runs.run import Run
from ortholora.trainers import checkpoints
from ortholora.trainers.trainer import OrthoTrainer


def publish_model(run: Run, trainer: OrthoTrainer) -> None:
    """Write adapter, heads, metadata, and the history of conflicts where there is one.

    Raises:
        UserError: The disk is full, or may not be written to.
    """
    with checkpoints.staging(run.folder, "The model", kept_in=run.checkpoints) as stage:
        save_model(stage, trainer._bare_model(), trainer.card)
        if history := trainer.conflicts.history():
            write_history(stage, history)
        publish_files(stage, run.folder)
