"""Settings that came after the first version: where they change nothing, a run is recorded as it was before."""

from __future__ import annotations

from typing import Any

#: Section of the configuration → its later keys, and what they are by default. A task's are those of `tasks`.
_LATER: dict[str, dict[str, Any]] = {
    "tasks": {
        "test": None,
        "max_test_rows": None,
        "standardise": True,
        "bad_rows": "error",
        "max_bad_rows": 0.05,
        "tools": None,
    },
    "mixing": {"unit": "rows"},
    "training": {"selection_by": "mean", "selection_weights": {}, "patience_per_task": 0},
}


def without_later(section: str, settings: Any) -> Any:
    """Leave out later keys that have their default, so that runs of earlier versions stay those of this one.

    Args:
        section: Name of the section; `tasks` for one task.
        settings: What is in it, as plain data.

    Returns:
        The other settings; what has no later keys, as it is.
    """
    if section not in _LATER:
        return settings
    later = _LATER[section]
    return {key: value for key, value in settings.items() if key not in later or value != later[key]}
