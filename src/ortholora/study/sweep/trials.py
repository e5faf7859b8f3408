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
from ortholora.study.folders import adapters_in
from ortholora.study.running import Means, Workspaces, check_runs, do_runs
from ortholora.study.sweep.choice import Choice, Trial, choose
from ortholora.study.sweep.values import Settings, combinations_of, folder_name, shown

SWEEP_FILE = "sweep.json"


def plan_trials(config: Config, methods: Sequence[Method], out: Path) -> list[Run]:
    """List the runs of the sweep that train: every method with every combination and seed."""
    sweep = config.study.sweep
    assert sweep is not None
    runs = []
    for method in (method for method in methods if method.merge is None):
        for settings in combinations_of(method, sweep.values):
            runs += _runs(method, settings, out, sweep.seeds, config.task_names)
    return runs


def plan_merges(
    config: Config, methods: Sequence[Method], out: Path, singles: Sequence[Run] = (), choices: Sequence[Choice] = ()
) -> list[Run]:
    """List the runs of the sweep that merge: every merge with every combination of its own settings, and seed.

    Args:
        config: The configuration.
        methods: The methods.
        out: The study's folder.
        singles: The trials; the adapters of `single` with its choice are what is merged.
        choices: What `single` chose among others; none: only labels and folders are wanted.
    """
    sweep = config.study.sweep
    assert sweep is not None
    chosen = next((choice for choice in choices if choice.method == SINGLE), None)
    runs = []
    for method in (method for method in methods if method.merge is not None):
        for settings in combinations_of(method, sweep.values):
            if not settings:  # nothing to choose
                continue
            for run in _runs(method, settings, out, sweep.seeds, config.task_names):
                parts = [] if chosen is None else [_trial_of(task, run.seed, singles, chosen) for task in run.tasks]
                runs.append(replace(run, sources=tuple(parts)))
    return runs


def _trial_of(task: str, seed: int, trials: Sequence[Run], chosen: Choice) -> Run:
    """The trial of `single` that trained the task with what it chose there."""
    settings = chosen.of(task).items()
    return next(
        run
        for run in trials
        if (run.method.name, run.tasks, run.seed) == (SINGLE, (task,), seed)
        and settings <= run.method.overrides.items()
    )


def _runs(method: Method, settings: Settings, out: Path, seeds: Sequence[int], tasks: Sequence[str]) -> list[Run]:
    folder = out / "sweep" / method.name / folder_name(settings)
    own = replace(method, overrides=method.overrides | settings)
    parts = [(seed, *part) for seed in seeds for part in adapters_in(folder / f"seed-{seed}", method, tasks)]
    return [Run(own, part, seed, place, shown(settings), out=out) for seed, place, part in parts]


def run_trials(
    runs: Sequence[Run],
    config: Config,
    methods: Sequence[Method],
    out: Path,
    means: Means,
    workspaces: Workspaces,
    progress: Progress,
) -> list[Choice]:
    """Do the runs of a sweep, and choose.

    Args:
        runs: What `plan_trials` listed.
        config: The configuration.
        methods: The methods.
        out: The study's folder.
        means: How runs are done, with the rows to choose on as dev rows.
        workspaces: The same rows, tokenised.
        progress: Is told what happens, and what was chosen.

    Returns:
        The choice of each method; none of a merge that has nothing to choose.

    Raises:
        UserError: A method can be trained with none of the values; see also `do_runs`.
        Stopped: The progress asked to stop.
    """
    choices: list[Choice] = []
    merges = [method for method in methods if method.merge is not None]
    trained = [method for method in methods if method.merge is None]
    trials = list(zip(runs, do_runs(runs, means, workspaces, progress), strict=True))
    choices += [_choose(method, config, trials) for method in trained]
    if merging := plan_merges(config, merges, out, runs, choices):
        check_runs(merging, workspaces)
        trials = list(zip(merging, do_runs(merging, means, workspaces, progress), strict=True))
        tried = {run.method.name for run in merging}
        choices += [_choose(method, config, trials) for method in merges if method.name in tried]
    for choice in choices:
        found = {", ".join(names): shown(settings) for settings, names in _by_settings(choice)}
        progress.note(f"{choice.method}: chosen " + "; ".join(_with_tasks(choice, k, v) for k, v in found.items()))
    return choices


def _choose(method: Method, config: Config, trials: Sequence[Trial]) -> Choice:
    assert config.study.sweep is not None
    tried = []
    for settings in combinations_of(method, config.study.sweep.values):
        overrides = method.overrides | settings
        own = [(run, r) for run, r in trials if run.method.name == method.name and run.method.overrides == overrides]
        tried.append((settings, own))
    return choose(method, tried, config.task_names)


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
