"""What all sections of the configuration share: unknown keys are refused, and a problem has three parts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

#: Seeds that every generator of NumPy and torch takes.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
#: Control characters but for tab and line breaks, and halves of characters, which no file in UTF-8 can hold.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Strict(BaseModel):
    """Base of all sections: an unknown key is an error, not a silence, and so is a value of another kind."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would bend: true is no 1, bytes are no text. And what nobody can use."""
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if kinds & {int, float} and not kinds & {bool, Any}:
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, bool):
                    raise wrong("a number", _shown(value), "write a number; yes, no, on and off are true and false")
        has_sections = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
        for part in _parts(value, into_keys=not has_sections):  # a section looks after its own
            if isinstance(part, str) and _NO_TEXT.search(part):
                raise wrong("text without control characters", _shown(part), "remove them, or correct the encoding")
            if not isinstance(part, str | int | float | bool | None | BaseModel) and part is not value:
                raise wrong("text, numbers, true, false, lists and keys", _shown(part), "put it in quotes")
            if isinstance(part, bytes):
                raise wrong("text", _shown(part), "write it as text")
            if isinstance(part, float) and not math.isfinite(part):
                raise wrong("a finite number", _shown(part), "write a number")
            if isinstance(part, int) and abs(part) > 2**63:
                raise wrong("numbers of at most 19 digits", _shown(part), "lower it")
        return value


def _revision(value: str) -> str:
    if not re.fullmatch(r"[!-~]+", value):
        raise wrong("the name of a commit, a branch or a tag", _shown(value), "correct it")
    return value


#: Name of a commit, a branch or a tag.
Revision = Annotated[str, AfterValidator(_revision)]


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types in an annotation."""
    if get_origin(annotation) is Literal:
        return
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _kinds(argument)


def _parts(value: Any, into_keys: bool) -> Iterator[Any]:
    """What is in a value, keys included: all but the lists and mappings themselves."""
    if isinstance(value, dict):
        for entry in (*value.keys(), *value.values()) if into_keys else ():
            yield from _parts(entry, into_keys)
    elif isinstance(value, list):
        for entry in value:
            yield from _parts(entry, into_keys)
    else:
        yield value


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def wrong(expected: str, found: str, todo: str) -> PydanticCustomError:
    """A problem in three parts; `to_user_error` shows them."""
    return PydanticCustomError(
        "config", "expected {expected}; found {found}; {todo}", {"expected": expected, "found": found, "todo": todo}
    )
