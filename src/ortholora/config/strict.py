"""What all sections of the configuration share: unknown keys are refused, and a problem has three parts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Base of all sections: an unknown key is an error, not a silence."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


def wrong(expected: str, found: str, todo: str) -> PydanticCustomError:
    """A problem in three parts; `to_user_error` shows them."""
    return PydanticCustomError(
        "config", "expected {expected}; found {found}; {todo}", {"expected": expected, "found": found, "todo": todo}
    )
