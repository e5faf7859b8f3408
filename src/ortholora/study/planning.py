"""Which runs a study consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ortholora.config.schema import Config
from ortholora.runs.method import SINGLE, Method
from ortholora.runs.run import Run
from ortholora.study.folders import adapters_in, folder_of
from ortholora.study.sweep.values import Settings

#: Method → task → the settings that it was given there.
Given = Mapping[str, Mapping[str, Settings]]


def plan(config: Config, methods: Sequence[Method], out: Path, given: Given | None = None) -> list[Run]:
    """List all runs of a study; seed by seed, so that a stopped study has whole seeds.

    Args:
        config: The configuration.
        methods: The methods, `single` before those that merge its adapters.
        out: The study's folder.
        given: What a sweep chose; nothing without one.
    """
    runs: list[Run] = []
    names = tuple(config.task_names)
    for seed in config.study.seeds:
        singles: list[Run] = []
        for method in methods:
            own = {task: _own(method, task, given or {}) for task in names}
            sources = tuple(singles) if method.merge else ()
            parts = adapters_in(folder_of(out, method.name, seed), method, names)
            runs += [Run(own[part[0]], part, seed, folder, sources=sources, out=out) for folder, part in parts]
            if method.name == SINGLE:
                singles = runs[-len(parts) :]
    return runs


def _own(method: Method, task: str, given: Given) -> Method:
    settings = given.get(method.name, {}).get(task)
    return method if settings is None else replace(method, overrides=method.overrides | settings)
