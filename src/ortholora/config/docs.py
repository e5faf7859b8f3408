"""`docs/configuration.md` out of the configuration model: `python -m ortholora.config.docs [FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ortholora.config.keys import section_of
from ortholora.config.schema import Config

_HEAD = """# Configuration

A run (`ortholora train`) or a study (`ortholora compare`) is described by one YAML file.
Every key can also be set on the command line: `--set training.steps=50`, `--set tasks.cola.weight=2`
(a task is addressed by its name or its index in the file; the tasks that `split_by` makes by their entry's, all
together). An unknown key is an error.

`examples/own_data.yaml` is the smallest example, `examples/glue.yaml` the fullest.
This page is generated from `src/ortholora/config/schema.py` by `python -m ortholora.config.docs`; edit there.
"""


def render() -> str:
    """Return the page: one table for each section with key, type, default and description."""
    return "\n".join([_HEAD, *_section(Config, "Top level", "")]) + "\n"


def _section(model: type[BaseModel], title: str, prefix: str) -> Iterator[str]:
    yield f"## {title}\n"
    if prefix and model.__doc__:
        yield f"{model.__doc__.splitlines()[0]}\n"
    yield "| key | type | default | description |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _type_of(field), _default_of(field), field.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            key = f"{prefix}{name}" + ("[]" if get_origin(field.annotation) is list else "")
            yield from _section(section, f"`{key}`", f"{key}.")


def _type_of(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(rule, attribute):g}"
        for rule in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(rule, attribute)
    ]
    return ", ".join([_name_of(field.annotation), *limits])


def _name_of(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{option}`" for option in inside)
    if origin in (Union, UnionType):
        return " or ".join(_name_of(choice) for choice in inside if choice is not NoneType)
    if origin is list:
        return f"list of {_name_of(inside[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel):
        return "–"
    if isinstance(default, list):
        return "`[" + ", ".join(map(str, default)) + "]`"
    text = (
        str(default).lower() if isinstance(default, bool) else f"{default:g}" if isinstance(default, float) else default
    )
    return f"`{text}`"


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/configuration.md")
    target.write_text(render(), encoding="utf-8")
