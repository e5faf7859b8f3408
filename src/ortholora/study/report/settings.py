"""The settings of a study's tasks in one line each: what was set, without what is so by default."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from ortholora.config.schema import Config
from ortholora.study.report.merged import DIFFERS, merge


def task_lines(tasks: Any) -> dict[str, Any]:
    """Write the tasks of a merged configuration.

    Args:
        tasks: The tasks of all runs, or, where runs differ in them, `{"differs": [those of each]}`.

    Returns:
        Name of the task → its line, or `{"differs": [each different line]}`.
    """
    versions = tasks[DIFFERS] if isinstance(tasks, dict) else [tasks]
    return merge([{task["name"]: _line(task) for task in version} for version in versions])


def _line(task: dict[str, Any]) -> str:
    pairs = ((key, value) for key, value in _changed(task).items() if key != "name")
    return ", ".join(f"{key} = {_text(value)}" for key, value in pairs)


def _changed(task: dict[str, Any]) -> dict[str, Any]:
    """The keys of a task that differ from their defaults."""
    try:
        config = Config.model_validate({"backbone": "any", "tasks": [task]})
    except ValidationError:
        # A record of another version: what was not set at all is left out.
        return {key: value for key, value in task.items() if value is not None}
    return config.tasks[0].model_dump(mode="json", exclude_defaults=True)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
