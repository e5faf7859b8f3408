"""Whether the runs of a study that are there already go with a sweep: seen before it starts, and after it chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ortholora.config.schema import Config
from ortholora.errors import UserError
from ortholora.runs.folder import check_claim
from ortholora.runs.method import SINGLE, Method
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder
from ortholora.study.planning import plan
from ortholora.study.running import Workspaces
from ortholora.study.sweep.choice import Choice, given_by
from ortholora.study.sweep.values import combinations_of

#: So many folders are named in a message.
_NAMED = 6


def possible_runs(config: Config, methods: Sequence[Method], out: Path) -> list[list[Run]]:
    """For every combination all runs of the study that train, in the same order.

    What is merged is not known before the sweep; but it lies beside the single adapters, which are checked.
    """
    assert config.study.sweep is not None
    trained = [method for method in methods if method.merge is None]
    return [
        plan(config, [replace(method, overrides=method.overrides | settings) for method in trained], out)
        for settings in combinations_of(trained[0], config.study.sweep.values)
    ]


def check_possible(planned: Sequence[Sequence[Run]], workspaces: Workspaces) -> None:
    """Check that every folder that is there fits one of the combinations: which one is not known before the sweep.

    Args:
        planned: What `possible_runs` listed.
        workspaces: The tasks without the rows that are cut off.

    Raises:
        UserError: A run was made without the sweep, with a value that is not among its values, or with other data;
            see also `check_folder`.
    """
    for versions in zip(*planned, strict=True):
        if versions[0].folder.exists():
            fitting = next((run for run in versions if _fits(run, workspaces)), versions[0])
            check_folder(fitting, workspaces.of(fitting.method))  # also says what is wrong where none fits


def check_chosen(
    config: Config, methods: Sequence[Method], choices: Sequence[Choice], workspaces: Workspaces, out: Path
) -> None:
    """Check that no run that is there was made with an earlier choice, before there were other values to choose.

    Args:
        config: The configuration.
        methods: The methods.
        choices: What the sweep chose.
        workspaces: As for `check_possible`.
        out: The study's folder.

    Raises:
        UserError: There are such runs.
    """
    runs = plan(config, methods, out, given_by(choices, config.task_names))
    trained = [run for run in runs if run.method.merge is None]
    old = [
        run
        for run, *versions in zip(trained, *possible_runs(config, methods, out), strict=True)
        if _is_there_but_other(run, workspaces) and any(_fits(other, workspaces) for other in versions)
    ]
    seeds = {run.seed for run in old if run.method.name == SINGLE}
    for run in (run for run in runs if run.method.merge is not None and _is_there_but_other(run, workspaces)):
        if run.seed in seeds or any(_fits(other, workspaces) for other in _versions(run, config)):
            old.append(run)
    if not old:
        return
    names = ", ".join(dict.fromkeys(run.method.name for run in old))
    folders = [str(run.folder.relative_to(out)) for run in old]
    more = f" and {len(folders) - _NAMED} more" if len(folders) > _NAMED else ""
    raise UserError(
        f"study.sweep now chooses other settings for {names} than runs in {out} were made with",
        expected="runs of the study with the settings that the sweep chooses",
        found="runs with an earlier choice in " + ", ".join(folders[:_NAMED]) + more,
        todo="move or delete these folders, and start the same command again: all other runs are kept",
    )


def _versions(run: Run, config: Config) -> list[Run]:
    """A merge of the same single adapters with each combination of its own settings."""
    assert config.study.sweep is not None
    combinations = combinations_of(run.method, config.study.sweep.values)
    return [replace(run, method=replace(run.method, overrides=run.method.overrides | own)) for own in combinations]


def _is_there_but_other(run: Run, workspaces: Workspaces) -> bool:
    return run.folder.exists() and not _fits(run, workspaces)


def _fits(run: Run, workspaces: Workspaces) -> bool:
    try:
        check_claim(run, workspaces.of(run.method))
    except UserError:
        return False
    return True
