"""What a rule asks of the engine, checked before anything is trained."""

from __future__ import annotations

from ortholora.engine.halves import wants_halves
from ortholora.engine.precondition import preconditioner_of
from ortholora.engine.rules.base import Rule, memory_of


def check_requests(rule: Rule) -> None:
    """Check that a rule asks for what the engine can give.

    Raises:
        ValueError: A decay out of range, a preconditioner without its methods, or two things that exclude each other.
    """
    memory_of(rule)
    wants_halves(rule)
    preconditioner_of(rule)
