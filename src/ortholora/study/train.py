"""`train`: one method, one run for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.ranks.board import introduce
from ortholora.ranks.together import join, on_first
from ortholora.runs.method import Method
from ortholora.runs.progress import Progress
from ortholora.runs.record import RunRecord
from ortholora.runs.run import Run
from ortholora.runs.train import announce, check_folder, ensure_record
from ortholora.runs.workspace import Workspace
from ortholora.study.methods import check_rule


def train_seeds(
    config: Config, tasks: Sequence[TaskData], out: Path, seeds: Sequence[int], progress: Progress, base: Path | None
) -> dict[Path, RunRecord]:
    """Train the configuration's rule on all its tasks, with each seed.

    In several processes, if a launcher started them: every one calls this, they share out the rows of each step, and
    the first alone writes.

    Args:
        config: The configuration.
        tasks: The data.
        out: The run's folder; with several seeds `out/seed-N`.
        seeds: The seeds.
        progress: Is told what happens.
        base: Folder that relative data files start from.

    Returns:
        Folder → result, in the order of the seeds; finished runs are kept and not repeated.
    """
    join(config.training.arguments.get("ddp_timeout"))
    introduce()
    check_rule(config.rule)
    workspace = Workspace(config, tasks)
    runs = runs_of(config, out, seeds)
    for run in runs:
        on_first(partial(check_folder, run, workspace))
    announce(runs, workspace, progress)
    return {run.folder: ensure_record(run, workspace, progress, base) for run in runs}


def runs_of(config: Config, out: Path, seeds: Sequence[int]) -> list[Run]:
    """The runs of `train`, one for each seed: of one in `out`, of several in `out/seed-N`."""
    method, names = Method(config.rule, config.rule, config.block), tuple(config.task_names)
    places = [out if len(seeds) == 1 else out / f"seed-{seed}" for seed in seeds]
    return [Run(method, names, seed, place, out=out) for seed, place in zip(seeds, places, strict=True)]
