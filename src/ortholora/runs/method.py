"""What a run does with the task gradients: a name for the table, a rule and a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SINGLE, JOINT, JOINT_WIDE = "single", "joint", "joint-wide"
#: Methods that merge the adapters of `single`, and the kind of merge of each.
MERGES: dict[str, Literal["linear", "ties", "dare"]] = {
    "merge-linear": "linear",
    "merge-ties": "ties",
    "merge-dare": "dare",
}


@dataclass(frozen=True)
class Method:
    """One column of the comparison.

    Attributes:
        name: `single`, `joint`, or the name of a rule's column.
        rule: Rule, or None: plain training, nothing captured.
        block: What conflict is judged on.
        overrides: Settings of this method alone, by dotted key.
        merge: How it merges the adapters of `single`; None: it trains.
        groups: The tasks of each of its adapters; None: one adapter for all tasks (`single`: one for each).
    """

    name: str
    rule: str | None = None
    block: Literal["matrix", "layer", "all"] = "matrix"
    overrides: dict[str, Any] = field(default_factory=dict)
    merge: Literal["linear", "ties", "dare"] | None = None
    groups: tuple[tuple[str, ...], ...] | None = None

    def adapters_of(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """The tasks of each adapter that it trains, out of all tasks of a study."""
        if self.name == SINGLE:
            return [(task,) for task in tasks]
        return [tuple(tasks)] if self.groups is None else list(self.groups)
