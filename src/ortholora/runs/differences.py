"""Which settings of two configurations differ, in words."""

from __future__ import annotations

from typing import Any

from ortholora.config.schema import Config
from ortholora.runs.provenance import comparable


def differences(there: Config, here: Config, merges: bool = False) -> str:
    """Name the settings that differ, but for the study's: "there" in a folder and "here" in a command.

    Args:
        there: The one.
        here: The other.
        merges: Of the study's, too, those that a merge of adapters goes by.

    Returns:
        A list in one line; empty where there is no difference.
    """
    if there.task_names != here.task_names:
        return f"the tasks {', '.join(there.task_names)} there, {', '.join(here.task_names)} here"
    old, new = (_flat(comparable(config.model_dump(mode="json", exclude={"study"}))) for config in (there, here))
    if merges:
        old |= _flat(there.study.merge.model_dump(mode="json"), "study.merge")
        new |= _flat(here.study.merge.model_dump(mode="json"), "study.merge")
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [f"{key} = {_shown(old.get(key))} there, {_shown(new.get(key))} here" for key in keys[:4]]
    return "; ".join(shown) + (f"; and {len(keys) - 4} more" if len(keys) > 4 else "")


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Settings by dotted key; a task by its name."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {item["name"]: item for item in value}
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {k: v for name, item in value.items() for k, v in _flat(item, f"{key}.{name}" if key else name).items()}
