"""How deeply data may be nested."""

from __future__ import annotations

from typing import Any

#: Most levels of lists and objects in each other; a schema of a tool has about ten. Python's own limit depends on its
#: version, and what can be read at it cannot always be written.
DEEPEST = 100
#: What is said of deeper ones.
TOO_DEEP = f"nested too deeply, more than {DEEPEST} levels"


def is_too_deep(value: Any) -> bool:
    """Whether lists and dictionaries in each other have more than `DEEPEST` levels; looked at level by level."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, (dict, list))]
        if not level:
            return False
    return True


def _parts(whole: dict[Any, Any] | list[Any]) -> Any:
    return whole.values() if isinstance(whole, dict) else whole
