"""The runs that a sweep makes, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ortholora.config.schema import Config
from ortholora.files import write_json
from ortholora.runs.method import SINGLE, Method
from ortholora.runs.progress import Progress
from ortholora.runs.run import Run
from ortholora.study.running import Means, Workspaces, do_runs
from ortholora.study.sweep.choice import Choice, Trial, choose
from ortholora.study.sweep.values import Settings, combinations, folder_name, shown

SWEEP_FILE = "sweep.json"


def plan_trials(config: Config, methods: Sequence[Method], out: Path) -> list[Run]:
    """List the runs of the sweep: every method with every combination and seed."""
    sweep = config.study.sweep
    assert sweep is not None
    runs = []
    for method in methods:
        for settings in combinations(sweep.values):
            folder = out / "sweep" / method.name / folder_name(settings)
            runs += _runs(method, settings, folder, sweep.seeds, config.task_names)
    return runs


def _runs(method: Method, settings: Settings, folder: Path, seeds: Sequence[int], tasks: Sequence[str]) -> list[Run]:
    own = replace(method, overrides=method.overrides | settings)
    trial = shown(settings)
    if method.name == SINGLE:
        return [Run(own, (task,), seed, folder / f"seed-{seed}" / task, trial) for seed in seeds for task in tasks]
    return [Run(own, tuple(tasks), seed, folder / f"seed-{seed}", trial) for seed in seeds]


def run_trials(
    runs: Sequence[Run],
    config: Config,
    methods: Sequence[Method],
    means: Means,
    workspaces: Workspaces,
    progress: Progress,
) -> list[Choice]:
    """Do the runs of a sweep, and choose.

    Args:
        runs: What `plan_trials` listed.
        config: The configuration.
        methods: The methods.
        means: How runs are done, with the rows to choose on as dev rows.
        workspaces: The same rows, tokenised.
        progress: Is told what happens, and what was chosen.

    Returns:
        The choice of each method.

    Raises:
        UserError: A method can be trained with none of the values; see also `do_runs`.
        Stopped: The progress asked to stop.
    """
    records = do_runs(runs, means, workspaces, progress)
    trials = list(zip(runs, records, strict=True))
    choices = [_choose(method, config, trials) for method in methods]
    for choice in choices:
        found = {", ".join(names): shown(settings) for settings, names in _by_settings(choice)}
        progress.note(f"{choice.method}: chosen " + "; ".join(_with_tasks(choice, k, v) for k, v in found.items()))
    return choices


def _choose(method: Method, config: Config, trials: Sequence[Trial]) -> Choice:
    assert config.study.sweep is not None
    tried = []
    for settings in combinations(config.study.sweep.values):
        overrides = method.overrides | settings
        own = [(run, r) for run, r in trials if run.method.name == method.name and run.method.overrides == overrides]
        tried.append((settings, own))
    return choose(method.name, tried, config.task_names)


def _by_settings(choice: Choice) -> list[tuple[Settings, list[str]]]:
    """The chosen settings, each with those that chose it."""
    found: list[tuple[Settings, list[str]]] = []
    for name, settings in choice.settings.items():
        same = next((names for other, names in found if other == settings), None)
        if same is None:
            found.append((settings, [name]))
        else:
            same.append(name)
    return found


def _with_tasks(choice: Choice, names: str, settings: str) -> str:
    return f"{settings} ({names})" if choice.method == SINGLE else settings


def summary_of(config: Config, choices: Sequence[Choice]) -> dict[str, Any]:
    """The sweep as plain data: what was tried, what each method reached and was given."""
    assert config.study.sweep is not None
    return {**config.study.sweep.model_dump(mode="json"), "methods": {c.method: c.as_json() for c in choices}}


def write_choices(out: Path, config: Config, choices: Sequence[Choice]) -> None:
    """Keep the choice in the study's folder."""
    write_json(out / SWEEP_FILE, summary_of(config, choices))
