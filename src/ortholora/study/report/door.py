"""`ortholora report`: the page of one study, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ortholora.study.folders import REPORT_FILE
from ortholora.study.report.many import write_ledger
from ortholora.study.report.study import write_report


def report_on(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page.

    Args:
        folders: One study, or several.
        out: The file, or a folder for it. Default: in the study's folder, or for several in the working directory.

    Returns:
        The file.

    Raises:
        UserError: A folder is no study, or a file of it is damaged.
        OSError: The page cannot be written.
    """
    default = folders[0] if len(folders) == 1 else Path()
    path = default / REPORT_FILE if out is None else out / REPORT_FILE if out.is_dir() else out
    if out is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if len(folders) == 1:
        write_report(folders[0], path)
    else:
        write_ledger(folders, path)
    return path
