"""Settings that are passed on to another library's class: held to the types that the class declares.

Such a class is a dataclass, which takes any value for any field and fails over it hours later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ortholora.errors import UserError


def check_types(section: str, values: Mapping[str, Any], cls: type) -> None:
    """Check values against the types of a dataclass's fields, as far as these are known.

    Args:
        section: The section of the configuration, for the message.
        values: The values by field; names that are no fields are left to others.
        cls: The dataclass.

    Raises:
        UserError: A value is of another type.
    """
    defaults = {entry.name: entry.default for entry in fields(cls)}
    hints = _hints(cls)
    for key, value in values.items():
        if key not in hints or value is defaults.get(key):
            continue
        kind = float if hints[key] is int and key.endswith("alpha") else hints[key]  # PEFT says int, and divides it
        if isinstance(value, bool) and kind in (int, float):
            raise _wrong(section, key, "a number", repr(value))
        try:
            adapter = TypeAdapter(kind, config=_CONFIG)
        except Exception:  # a type that pydantic cannot check
            continue
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            raise _wrong(section, key, str(error.errors(include_url=False)[0]["msg"]), repr(value)) from None


_CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


@lru_cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception:  # names that only a type checker imports
        return {}


def _wrong(section: str, key: str, expected: str, found: str) -> UserError:
    return UserError(
        f"{section}.{key}",
        expected=expected.removeprefix("Input should be "),
        found=found,
        todo=f"give `{key}` such a value, or remove the line",
    )
