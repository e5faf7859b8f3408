"""What a run does with the task gradients: a name for the table, a rule and a block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SINGLE, JOINT, JOINT_WIDE = "single", "joint", "joint-wide"


@dataclass(frozen=True)
class Method:
    """One column of the comparison.

    Attributes:
        name: `single`, `joint`, or the name of a rule's column.
        rule: Rule, or None: plain training, nothing captured.
        block: What conflict is judged on.
        overrides: Settings of this method alone, by dotted key.
    """

    name: str
    rule: str | None = None
    block: Literal["matrix", "layer", "all"] = "matrix"
    overrides: dict[str, Any] = field(default_factory=dict)
