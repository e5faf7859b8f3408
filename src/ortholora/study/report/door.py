"""`ortholora report`: the page of one study, of several, or of a diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ortholora.errors import UserError
from ortholora.study.diagnose.read import is_diagnosis, read_diagnosis
from ortholora.study.diagnose.write import write_report as write_report_of_diagnosis
from ortholora.study.folders import REPORT_FILE
from ortholora.study.report.many import write_ledger
from ortholora.study.report.study import write_report


def report_on(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page.

    Args:
        folders: One study, several, or one diagnosis.
        out: The file, or a folder for it. Default: in the study's folder, or for several in the working directory.

    Returns:
        The file.

    Raises:
        UserError: A folder is no study, a file of it is damaged, or a diagnosis is not finished or one of several.
        OSError: The page cannot be written.
    """
    diagnoses = [folder for folder in folders if is_diagnosis(folder)]
    if diagnoses and len(folders) > 1:
        raise _not_together(diagnoses[0])
    default = folders[0] if len(folders) == 1 else Path()
    path = default / REPORT_FILE if out is None else out / REPORT_FILE if out.is_dir() else out
    found = read_diagnosis(diagnoses[0]) if diagnoses else None
    if out is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if found is not None:
        write_report_of_diagnosis(path, found)
    elif len(folders) == 1:
        write_report(folders[0], path)
    else:
        write_ledger(folders, path)
    return path


def _not_together(folder: Path) -> UserError:
    return UserError(
        f"{folder} is no study",
        expected="studies: a page of several compares what they found",
        found="a diagnosis",
        todo=f"leave it out, or give it alone: `ortholora report {folder}`",
    )
