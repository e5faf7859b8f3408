"""Files of our own that are read back: held to the types of our own definition, and one message where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ortholora.config.bounds import ordinary
from ortholora.errors import UserError

T = TypeVar("T")

#: Text that is a name of something: not empty, and no NUL, escape sequences or line breaks in it.
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


class Stored(BaseModel):
    """Base of a file's definition: no value is bent into another type."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


def read_stored(path: Path, schema: TypeAdapter[T], expected: str, todo: str) -> T:
    """Read a JSON file of our own.

    Args:
        path: The file.
        schema: What it must hold.
        expected: What the file is, for the message where it is no JSON or not there.
        todo: The way out.

    Raises:
        UserError: The file is missing, damaged, or holds values of other types.
    """
    try:
        return schema.validate_json(ordinary(path).read_bytes(), strict=True)
    except ValidationError as error:
        wanted, found = problem_of(error)
        raise damaged(path, f"{expected}, with {wanted}", found, todo) from None
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
        raise UserError(f"{path} cannot be read", expected=expected, found=found, todo=todo) from None


def damaged(path: Path, expected: str, found: str, todo: str) -> UserError:
    """The message about a file of ours that cannot be used."""
    return UserError(f"{path} is damaged", expected=expected, found=found, todo=todo)


def problem_of(error: ValidationError) -> tuple[str, str]:
    """Say what the first problem of a file is.

    Returns:
        What was expected, and what was found instead.
    """
    details = error.errors(include_url=False)[0]
    key, kind = ".".join(map(str, details["loc"])), details["type"]
    if kind == "json_invalid":
        return "a whole JSON file", str(details["msg"])
    if not key:
        return "a JSON object", type(details["input"]).__name__
    if kind == "missing":
        return f"key `{key}`", "no such key"
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"key `{key}`: {message}", _short(details["input"])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
