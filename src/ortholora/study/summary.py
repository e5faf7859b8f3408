"""The summary of a study out of its records and its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ortholora.config.schema import Config
from ortholora.runs.record import RunRecord
from ortholora.study.statistics.conflict import conflict_sentences, summarise_conflict
from ortholora.study.statistics.summarise import summarise
from ortholora.study.sweep.values import keys_of


def summary_of_study(config: Config, records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Summarise runs, with their conflicts.

    Args:
        config: The configuration of the study.
        records: The finished runs; see `summarise`.
        names: The methods: `single`, `joint`, then the others.

    Raises:
        UserError: The records are not complete, or cannot be compared.
    """
    sweep = config.study.sweep
    summary = summarise(
        records,
        methods=names,
        tasks=config.task_names,
        resamples=config.study.bootstrap,
        seed=config.data_seed,
        swept=[] if sweep is None else [key for entry in sweep.values for key in keys_of(entry)],
    )
    summary["conflict"] = {name: summarise_conflict([r for r in records if r.method == name]) for name in names[2:]}
    if summary["recovered_method"]:
        summary["verdict"] += conflict_sentences(summary["conflict"][summary["recovered_method"]])
    return summary
