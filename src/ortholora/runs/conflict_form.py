"""The form of the conflict figures in `result.json`, which a study adds up."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ortholora.config.stored import Stored, problem_of


class _Pair(Stored):
    """Two tasks; a figure that is no number is stored as null."""

    cosine: float | None
    standard_error: float | None
    negative_share: float | None
    verdict: Literal["conflict", "agreement", "unsure"]
    windows: Annotated[int, Field(ge=0)] | None = None


class _Conflict(Stored):
    steps: Annotated[int, Field(ge=0)]
    removed: float
    pairs: dict[str, _Pair]


def conflict_problem(conflict: dict[str, Any] | None) -> tuple[str, str] | None:
    """What is wrong with a run's figures: what was expected and what was found; None for good ones."""
    try:
        TypeAdapter(_Conflict | None).validate_python(conflict)
    except ValidationError as error:
        return problem_of(error)
    return None
