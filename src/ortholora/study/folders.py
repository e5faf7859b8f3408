"""Where the runs of a study lie, and which of them to try first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ortholora.runs.method import JOINT, SINGLE, Method

#: In a study's folder: its configuration, its summary as data, and the report.
STUDY_FILE, SUMMARY_FILE, REPORT_FILE = "study.yaml", "summary.json", "report.html"


def folder_of(out: Path, method: str, seed: int) -> Path:
    """The folder of a method's runs with a seed: a run of all tasks, or one folder for each of its adapters in it."""
    return out / "runs" / method / f"seed-{seed}"


def adapters_in(folder: Path, method: Method, tasks: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """The folder of each adapter of a method with a seed, and its tasks.

    Args:
        folder: What `folder_of` returned, or another folder of its runs with one seed.
        method: The method.
        tasks: All tasks of the study.
    """
    parts = method.adapters_of(tasks)
    if method.name == SINGLE:
        return [(folder / part[0], part) for part in parts]
    if method.groups is None:
        return [(folder, parts[0])]
    return [(_of_group(folder, number), part) for number, part in enumerate(parts, start=1)]


def _of_group(folder: Path, number: int) -> Path:
    return folder / f"group-{number}"


def adapter_to_try(out: Path, summary: dict[str, Any]) -> Path:
    """The adapter that a study points at: the rule it judges, or joint training, with the first seed."""
    method = summary["recovered_method"] or JOINT
    folder = folder_of(out, method, summary["seeds"][0])
    return _of_group(folder, 1) if summary.get("rules", {}).get(method, {}).get("groups") else folder
