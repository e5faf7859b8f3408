"""What the commands found as plain data, for `--json`: paths, figures, intervals, verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def of_made(made: Any) -> dict[str, Any]:
    """A new configuration: where it is, and what it makes of the files."""
    return {
        "config": made.path,
        "files": made.files,
        "tasks": {task.name: {"kind": task.spec.kind, "rows": _rows(task)} for task in made.tasks},
        "notes": [note for draft in made.drafts for note in draft.notes],
    }


def of_trained(results: Mapping[Path, Any]) -> dict[str, Any]:
    """The runs of `train`, in the order of their seeds."""
    return {"runs": [_run(folder, record) for folder, record in results.items()]}


def of_study(out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """A study: where its files are, and all of its `summary.json`, the verdict included."""
    from ortholora.study.folders import REPORT_FILE, adapter_to_try

    return {"folder": out, "report": out / REPORT_FILE, "adapter": adapter_to_try(out, summary), **summary}


def of_diagnosis(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """A diagnosis: where its files are, and all of its `diagnosis.json`."""
    return {"folder": out, **found}


def of_export(out: Path, card: Any) -> dict[str, Any]:
    """An exported model."""
    from ortholora.models.saving import HEADS

    heads = (out.expanduser() / HEADS).is_file()
    return {"folder": out, "backbone": card.backbone, "tasks": [task.name for task in card.tasks], "heads": heads}


def of_answer(question: Any, answer: Any) -> dict[str, Any]:
    """A question with its answer."""
    text = question[0] if isinstance(question, tuple) and len(question) == 1 else question
    return {"text": text, **answer.to_json()}


def _run(folder: Path, record: Any) -> dict[str, Any]:
    from ortholora.runs.page import interval_of

    tasks = {
        task: {
            "metric": record.metric_names[task],
            "value": value,
            "ci95": interval_of(record, task),
            "scored_on": record.scored_on.get(task, "dev"),
            "rows": len(record.targets[task]),
        }
        for task, value in record.metrics.items()
    }
    return {
        "folder": folder,
        "rule": record.rule,
        "seed": record.seed,
        "tasks": tasks,
        "average": sum(record.metrics.values()) / len(record.metrics),
        "step_seconds": record.step_seconds,
        "stopped": record.stopped,
    }


def _rows(task: Any) -> dict[str, int]:
    parts = {"train": task.train, "dev": task.dev, "test": task.test}
    return {part: len(rows) for part, rows in parts.items() if rows is not None}
