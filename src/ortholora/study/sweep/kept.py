"""Whether the runs of a study that are there already go with a sweep: seen before it starts, and after it chose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ortholora.errors import UserError
from ortholora.runs.folder import check_claim
from ortholora.runs.run import Run
from ortholora.runs.train import check_folder
from ortholora.study.running import Workspaces

#: So many folders are named in a message.
_NAMED = 6


def check_possible(planned: Sequence[Sequence[Run]], workspaces: Workspaces) -> None:
    """Check that every folder that is there fits one of the combinations: which one is not known before the sweep.

    Args:
        planned: For every combination all runs of the study, in the same order.
        workspaces: The tasks without the rows that are cut off.

    Raises:
        UserError: A run was made without the sweep, with a value that is not among its values, or with other data;
            see also `check_folder`.
    """
    for versions in zip(*planned, strict=True):
        if versions[0].folder.exists():
            fitting = next((run for run in versions if _fits(run, workspaces)), versions[0])
            check_folder(fitting, workspaces.of(fitting.method))  # also says what is wrong where none fits


def check_chosen(runs: Sequence[Run], planned: Sequence[Sequence[Run]], workspaces: Workspaces, out: Path) -> None:
    """Check that no run that is there was made with an earlier choice, before there were other values to choose.

    Args:
        runs: The runs of the study with the choice.
        planned: As for `check_possible`.
        workspaces: As for `check_possible`.
        out: The study's folder.

    Raises:
        UserError: There are such runs.
    """
    old = [
        run
        for run, *versions in zip(runs, *planned, strict=True)
        if run.folder.exists() and not _fits(run, workspaces) and any(_fits(other, workspaces) for other in versions)
    ]
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


def _fits(run: Run, workspaces: Workspaces) -> bool:
    try:
        check_claim(run, workspaces.of(run.method))
    except UserError:
        return False
    return True
