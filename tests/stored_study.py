"""Studies on disk without any training: records and histories of conflicts with a known truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ortholora.config.file import dump_config
from ortholora.config.schema import Config
from ortholora.files import write_json, write_text
from ortholora.runs.history import write_history
from ortholora.runs.record import RunRecord, write_record
from ortholora.study.folders import STUDY_FILE, folder_of
from ortholora.study.summary import summary_of_study
from ortholora.trainers.history import ConflictHistory
from synthetic_study import SKILL, study

STEPS = range(10, 101, 10)


def config_of(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Config:
    """A configuration with these tasks and methods."""
    listed = [{"name": name, "train": f"{name}.tsv", "dev": f"{name}-dev.tsv"} for name in tasks]
    return Config.model_validate(
        {"backbone": "x", "tasks": listed, "study": {"methods": methods, "seeds": seeds, "bootstrap": 100}}
    )


def history(tasks: Sequence[str], seed: int, layers: int = 3, windows: int = 16) -> ConflictHistory:
    """The first pair fights in every layer's B, the second helps in the first layer; all else is noise."""
    generator = np.random.default_rng(seed)
    kinds = [f"base.layer.{n}.query.lora_{role}.default.weight" for n in range(layers) for role in "AB"]
    pairs = len(tasks) * (len(tasks) - 1) // 2
    cosines = 0.05 * generator.normal(size=(windows, len(kinds) + 1, pairs))
    cosines[:, 1::2, 0] -= 0.4
    cosines[:, -1, 0] -= 0.4
    if pairs > 1:
        cosines[:, :2, 1] += 0.3
    lengths = 0.1 * generator.normal(size=(windows, len(kinds) + 1, len(tasks))) - np.arange(len(tasks))
    steps = np.full(windows, 6)
    counts = np.full(cosines.shape, 6.0), np.full(lengths.shape, 6.0)
    return ConflictHistory(tuple(tasks), tuple(kinds), steps, cosines, counts[0], lengths, counts[1])


def with_curves(record: RunRecord) -> RunRecord:
    """A record with curves that fall."""
    loss = {task: [(step, 2.0 / step) for step in STEPS] for task in record.tasks}
    metric = {task: [(step, 0.5 + step / 300) for step in STEPS] for task in record.tasks}
    return dataclasses.replace(record, curves={"loss": loss, "metric": metric})


def records_of(**options: Any) -> list[RunRecord]:
    """The records of a synthetic study, with curves."""
    return [with_curves(record) for record in study(np.random.default_rng(0), **options)]


def write_runs(folder: Path, records: Sequence[RunRecord]) -> None:
    """Write records where `compare` would."""
    for record in records:
        where = folder_of(folder, record.method, record.seed)
        write_record(where / record.tasks[0] if record.method == "single" else where, record)
        if record.rule not in (None, "sum"):
            write_history(where, history(record.tasks, record.seed))


def write_study(
    folder: Path, skill: dict[str, float] = SKILL, seeds: int = 3, tasks: int = 3, finished: bool = True, **options: Any
) -> list[RunRecord]:
    """Write a whole study, or one of which nothing is done yet."""
    records = records_of(skill=skill, seeds=seeds, tasks=tasks, **options)
    names = [f"task{index}" for index in range(tasks)]
    config = config_of(names, list(skill), range(seeds))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / STUDY_FILE, dump_config(config))
    if finished:
        write_runs(folder, records)
        write_json(folder / "summary.json", summary_of_study(config, records, list(skill)))
    return records
