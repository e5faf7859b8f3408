"""What a check found, by how bad it is. Torch-free: a mistake in the configuration must not wait for torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ortholora.errors import UserError

#: Exit codes: nothing wrong, or warnings that do not count; errors; warnings that do.
FINE, WRONG, WARNED = 0, 2, 3


@dataclass
class Findings:
    """What was found so far.

    Attributes:
        errors: What `train` would refuse.
        warnings: What it would do, and somebody should have looked at.
        notes: What is good to know.
        facts: The figures, by subject, all of them JSON-able.
    """

    errors: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Do a part of the check; what it refuses is an error, and ends this part only."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    def exit_code(self, strict: bool) -> int:
        """What a shell is told; with `strict`, warnings count."""
        if self.errors:
            return WRONG
        return WARNED if strict and self.warnings else FINE

    def to_json(self, strict: bool) -> dict[str, Any]:
        """All of it as plain data; `ok` says whether the exit code is 0."""
        errors = [
            {"what": error.what, "expected": error.expected, "found": error.found, "to_do": error.todo}
            for error in self.errors
        ]
        ok = self.exit_code(strict) == FINE
        return {"ok": ok, "errors": errors, "warnings": self.warnings, "notes": self.notes, **self.facts}
