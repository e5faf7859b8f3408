"""A run's model into its folder: whole or not at all."""

from __future__ import annotations

from ortholora.files import publish_files, write_text
from ortholora.models.saving import Weights, save_model
from ortholora.runs.history import write_history
from ortholora.runs.page import PAGE_FILE, run_page
from ortholora.runs.record import RunRecord
from ortholora.runs.run import Run
from ortholora.trainers import checkpoints
from ortholora.trainers.trainer import OrthoTrainer


def publish_model(run: Run, trainer: OrthoTrainer, record: RunRecord, weights: Weights | None = None) -> None:
    """Write adapter, heads, metadata, the page about them, and the history of conflicts where there is one.

    Args:
        run: The run.
        trainer: Its trainer.
        record: What it measured.
        weights: `trainer.gathered()`, which takes all processes; this takes one.

    Raises:
        UserError: The disk is full, or may not be written to.
    """
    with checkpoints.staging(run.folder, "The model", kept_in=run.checkpoints) as stage:
        model = trainer._bare_model()
        save_model(stage, model, trainer.card, weights)
        page = run_page(trainer.card, record, trainer.state.global_step, bool(model.extra_weights()))
        write_text(stage / PAGE_FILE, page)
        if history := trainer.conflicts.history():
            write_history(stage, history)
        publish_files(stage, run.folder)
