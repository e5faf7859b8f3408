"""What a check says of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ortholora.data.survey import PartSurvey, TaskSurvey, survey
from ortholora.data.task import TaskData
from ortholora.errors import listing
from ortholora.runs.workspace import Workspace
from ortholora.study.check.findings import Findings

#: Shares from which on something is a warning and no note.
MOST_REPEATED, MOST_CONTRADICTING, MOST_CUT = 0.05, 0.01, 0.1
#: Training rows of a class, below which it is called rare.
FEW_ROWS = 10
#: Classes that are named in one line.
MOST_CLASSES = 8


def look_at_rows(tasks: Sequence[TaskData], found: Findings) -> None:
    """Count the rows of all tasks, and say what is odd about them."""
    found.facts["tasks"] = facts = {}
    for task in tasks:
        counted = survey(task)
        facts[task.name] = _facts(task, counted)
        for part, own in counted.parts.items():
            _look_at_part(f"{task.name}, {part}", part, own, found)
        for (first, second), rows in counted.shared.items():
            if rows:
                share = _of(rows, counted.parts[second].rows)
                found.warnings.append(f"{task.name}: the texts of {share} {second} rows are in {first}, too")
        for part, dropped in task.dropped.items():
            found.notes.append(f"{task.name}, {part}: {len(dropped):,} bad rows are left out (`bad_rows: drop`)")


def look_at_cuts(workspace: Workspace, found: Findings) -> None:
    """Say how many rows are longer than `max_length`, and how long rows are."""
    sentences = workspace.cut_rows()
    cut = [workspace.encoded(task.name) for task in workspace.tasks if workspace.encoded(task.name).cut]
    for encoded, sentence in zip(cut, sentences, strict=True):
        kind = found.warnings if encoded.cut > MOST_CUT * encoded.rows else found.notes
        kind.append(sentence.rstrip("."))
    for task in workspace.tasks:
        encoded = workspace.encoded(task.name)
        lengths = sorted(encoded.train.lengths)
        own = found.facts["tasks"][task.name]
        own["cut_rows"] = encoded.cut
        own["tokens"] = {"median": lengths[len(lengths) // 2], "longest": lengths[-1], "all": sum(lengths)}


def _facts(task: TaskData, counted: TaskSurvey) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {}
    for part, own in counted.parts.items():
        parts[part] = {"rows": own.rows, "repeated": own.repeated, "contradicting": own.contradicting}
        if own.classes is not None:
            parts[part]["classes"] = own.classes
        if own.values is not None:
            parts[part]["values"] = dict(zip(("least", "mean", "greatest"), own.values, strict=True))
    shared = {f"{second} in {first}": rows for (first, second), rows in counted.shared.items()}
    return {"kind": task.spec.kind, "metric": task.spec.metric, "parts": parts, "shared": shared}


def _look_at_part(where: str, part: str, own: PartSurvey, found: Findings) -> None:
    if own.repeated:
        kind = found.warnings if own.repeated > MOST_REPEATED * own.rows else found.notes
        kind.append(f"{where}: {_of(own.repeated, own.rows)} rows repeat an earlier one, with the same answer")
    if own.contradicting:
        kind = found.warnings if own.contradicting > MOST_CONTRADICTING * own.rows else found.notes
        kind.append(f"{where}: the texts of {_of(own.contradicting, own.rows)} rows are there with another class, too")
    if own.classes is None:
        return
    few = FEW_ROWS if part == "train" else 1
    rare = [label for label, rows in own.classes.items() if rows < few]
    if rare:
        # A column of ids taken for labels makes a class of every row.
        doubt = ". Does `label` name the right column?" if len(own.classes) > own.rows / 2 else ""
        found.warnings.append(f"{where}: {'few' if few > 1 else 'no'} rows of {_classes(rare, own.classes)}{doubt}")
    for labels in _alike(own.classes) if part == "train" else ():
        found.warnings.append(f"{where}: {listing(labels)} count as different classes; do they mean the same?")


def _classes(labels: Sequence[str], rows: Mapping[str, int]) -> str:
    shown = ", ".join(f"`{label}`" + (f" ({rows[label]})" if rows[label] else "") for label in labels[:MOST_CLASSES])
    more = f" and {len(labels) - MOST_CLASSES} more" if len(labels) > MOST_CLASSES else ""
    return f"class {shown}{more}" if len(labels) == 1 else f"the classes {shown}{more}"


def _alike(classes: Iterable[str]) -> list[list[str]]:
    """Classes that are one class, written in several ways."""
    groups: dict[str, list[str]] = {}
    for label in classes:
        groups.setdefault(" ".join(label.casefold().split()), []).append(label)
    return [labels for labels in groups.values() if len(labels) > 1]


def _of(rows: int, total: int) -> str:
    return f"{rows:,} of {total:,}"
