"""`train`: one method, one run for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ortholora.config import Config
from ortholora.data.task import TaskData
from ortholora.study.compare import record_of
from ortholora.study.methods import check_rule
from ortholora.study.record import RESULT_FILE, RunRecord, read_record, write_record
from ortholora.training.method import Method
from ortholora.training.progress import Progress
from ortholora.training.run import Workspace, claim, train_run


def train_seeds(
    config: Config, tasks: Sequence[TaskData], out: Path, seeds: Sequence[int], progress: Progress, base: Path | None
) -> dict[Path, RunRecord]:
    """Train the configuration's rule on all its tasks, with each seed.

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
    check_rule(config.rule)
    method = Method(config.rule, config.rule, config.block)
    workspace = Workspace(config, tasks)
    names = config.task_names
    folders = {seed: out if len(seeds) == 1 else out / f"seed-{seed}" for seed in seeds}
    for seed, folder in folders.items():
        if folder.exists():
            claim(workspace, method, names, seed, folder)
    labels = {seed: f"{config.rule} · seed {seed}" for seed in seeds}
    progress.plan([(labels[s], len(names), (f / RESULT_FILE).is_file()) for s, f in folders.items()])
    for seed, folder in folders.items():
        if not (folder / RESULT_FILE).is_file():
            result = train_run(workspace, method, names, seed, folder, progress, labels[seed], base)
            write_record(folder, record_of(method, seed, names, result))
    return {folder: read_record(folder) for folder in folders.values()}
