"""A run that is merged out of finished single runs, and evaluated as any other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from ortholora.models.build import make_card, wrap
from ortholora.models.kinds import model_of
from ortholora.models.loading import load_heads
from ortholora.models.merge import merge_adapters
from ortholora.runs.build import build_trainer
from ortholora.runs.measure import measure
from ortholora.runs.progress import Progress
from ortholora.runs.publish import publish_model
from ortholora.runs.record import RunRecord
from ortholora.runs.run import Run, how_merged, settings_of_sources
from ortholora.runs.trackers import tracked
from ortholora.runs.workspace import Workspace


def merge_run(
    run: Run, workspace: Workspace, progress: Progress, jobs: int = 1, check_still: Callable[[], None] = lambda: None
) -> RunRecord:
    """Merge the adapters of a run's sources; each task keeps the head of its own. For the arguments see `train_run`.

    Returns:
        The run's record, not yet written; the model is. It has no time of a step and no memory: nothing was trained.

    Raises:
        UserError: An adapter is missing or damaged.
    """
    config = workspace.config
    progress.start(run.label, 0, 0)
    card = make_card(config, workspace.tasks)
    folders = {source.tasks[0]: source.folder for source in run.sources}
    how = how_merged(run, config)
    bare = model_of(card).load_backbone(config.backbone, getattr(torch, config.dtype), config.revision)
    merged = merge_adapters(bare, folders, how, run.seed)
    model = wrap(merged.model, card, config.head_dropout, run.seed)
    load_heads(list(folders.values()), model)
    trainer = build_trainer(run, workspace, progress, model)
    with tracked(run, trainer.args):
        record = measure(run, trainer, config, jobs)
    check_still()
    publish_model(run, trainer, record)
    progress.finish(run.label, record.metrics)
    about = {**asdict(how), "rank": merged.rank, "kept": merged.kept, "singles": settings_of_sources(run)}
    return replace(
        record,
        step_seconds=math.nan,
        peak_memory_bytes=0,
        provenance={**record.provenance, "merge": about},
    )
