"""Where a study comes from and how to repeat it: commands, settings, provenance, how to read the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ortholora.study.folders import STUDY_FILE
from ortholora.study.report.merged import flatten
from ortholora.study.report.page import Commands, Folded, Paragraph, Part, Section, Sentences, Table
from ortholora.study.report.settings import task_lines

#: Provenance that a reader looks for first.
_FIRST = ("hardware", "versions", "commit", "data")


def origin_section(provenance: dict[str, Any], settings: str | None, notes: Sequence[str]) -> Section:
    """How to read the numbers, how to repeat them, and where they come from."""
    parts: list[Part] = [Sentences(notes)] if notes else []
    parts += _commands(settings)
    if settings is not None:
        parts.append(Folded(f"The configuration, {STUDY_FILE}", [Commands(settings.rstrip().splitlines())]))
    return Section("How to read and repeat this", [*parts, *provenance_parts(provenance)])


def provenance_parts(provenance: dict[str, Any]) -> list[Part]:
    """Every setting, and where it was run, with what and on which data; folded away."""
    shown = {key: provenance[key] for key in (*_FIRST, *provenance) if key in provenance}
    config = shown.pop("config", {})
    if isinstance(config, dict) and "tasks" in config:
        config = {**config, "tasks": task_lines(config["tasks"])}
    return [
        Folded(title, [Table(["key", "value"], [list(pair) for pair in pairs], left=2)])
        for title, part in (("Every setting", config), ("Hardware, versions and data", shown))
        if (pairs := flatten(part))
    ]


def _commands(settings: str | None) -> list[Part]:
    lines = [
        f"ortholora compare {STUDY_FILE} --out again    # the study anew; add --jobs 2 for two runs at once",
        "ortholora report .                              # this page anew",
    ]
    what = (
        "In the folder of the study. Data files that are relative to another folder need --data-dir."
        if settings is not None
        else f"Save the configuration of the study as {STUDY_FILE} first: it was not kept beside the summary, and its "
        "settings are listed below."
    )
    return [Paragraph(what), Commands(lines)]
