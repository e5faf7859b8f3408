"""What the runs of a study say of where they came from, merged into one statement, differences shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Key that marks values which are not the same in all runs: `{"differs": [...]}`.
DIFFERS = "differs"
#: Keys that say something of one run, not of the study.
_OF_ONE_RUN = frozenset({"settings", "merge"})


def merge(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the provenance of several runs.

    Args:
        parts: Plain data, one a run; a key may be missing from some (a `single` run knows its own data only).

    Returns:
        The common values; where runs differ, `{"differs": [each different value]}`.
    """
    keys = list(dict.fromkeys(key for part in parts for key in part if key not in _OF_ONE_RUN))
    merged: dict[str, Any] = {}
    for key in keys:
        values = [part[key] for part in parts if key in part]
        if all(isinstance(value, dict) for value in values):
            merged[key] = merge(values)
            continue
        distinct = [value for index, value in enumerate(values) if value not in values[:index]]
        merged[key] = distinct[0] if len(distinct) == 1 else {DIFFERS: distinct}
    return merged


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Write provenance as (dotted key, text) pairs, in order."""
    if isinstance(value, dict) and set(value) == {DIFFERS}:
        found = [_text(item) for item in value[DIFFERS]]
        more = f"; … ({len(found)} values)" if len(found) > 4 else ""
        return [(prefix, "differs between runs: " + "; ".join(found[:4]) + more)]
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in flatten(item, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, _text(value))]


def differing(provenance: dict[str, Any], key: str) -> bool:
    """Tell whether anything under the key is not the same in all runs."""
    return any(text.startswith("differs between runs") for _, text in flatten(provenance.get(key, {}), key))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
