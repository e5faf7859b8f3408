"""Where the runs of a study lie, and which of them to try first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ortholora.runs.method import JOINT

#: In a study's folder: its configuration, its summary as data, and the report.
STUDY_FILE, SUMMARY_FILE, REPORT_FILE = "study.yaml", "summary.json", "report.html"


def folder_of(out: Path, method: str, seed: int) -> Path:
    """The folder of a method's runs with a seed: a run of all tasks, or of `single` one folder for each task in it."""
    return out / "runs" / method / f"seed-{seed}"


def adapter_to_try(out: Path, summary: dict[str, Any]) -> Path:
    """The adapter that a study points at: the rule it judges, or joint training, with the first seed."""
    return folder_of(out, summary["recovered_method"] or JOINT, summary["seeds"][0])
