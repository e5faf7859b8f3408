"""`docs/configuration.md` out of the configuration model: `python -m ortholora.config.docs [FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ortholora.config.keys import sections_of
from ortholora.config.schema import Config
from ortholora.config.tasks.base import Task

#: The page in this checkout, wherever the command is started.
PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"

_HEAD = """# Configuration

A run (`ortholora train`) or a study (`ortholora compare`) is described by one YAML file.
Every key can also be set on the command line: `--set training.steps=50`, `--set tasks.cola.weight=2`
(a task is addressed by its name or its index in the file; the tasks that `split_by` makes by their entry's, all
together). An unknown key is an error.

`examples/own_data.yaml` is the smallest example, `examples/glue.yaml` the fullest.
This page is generated from the descriptions in `src/ortholora/config/` by `python -m ortholora.config.docs`; edit
there.
"""


def render() -> str:
    """Return the page: one table for each section with key, type, default and description."""
    return "\n".join([_HEAD, *_section(Config, "Top level", "")]) + "\n"


def _section(model: type[BaseModel], title: str, prefix: str) -> Iterator[str]:
    yield from _table(title, _about(model) if prefix else "", [_row(model, name) for name in model.model_fields])
    yield from _below(model, list(model.model_fields), prefix)


def _kinds(models: Sequence[type[BaseModel]], title: str, prefix: str) -> Iterator[str]:
    """The keys of all kinds of task, and then what each kind has besides."""
    common = [name for name in models[0].model_fields if all(name in model.model_fields for model in models)]
    abouts = {model.model_fields["kind"].default: _about(model) for model in models}
    meanings = "; ".join(f"`{kind}`: {about[0].lower()}{about[1:-1]}" for kind, about in abouts.items())
    choices = ("`kind`", " or ".join(f"`{kind}`" for kind in abouts), f"`{next(iter(abouts))}`", f"{meanings}.")
    rows = [choices if name == "kind" else _row(models[0], name) for name in common]
    yield from _table(title, _about(Task), rows)
    for kind, model in zip(abouts, models, strict=True):
        own = [_row(model, name) for name in model.model_fields if name not in common]
        yield from _table(f"{title} of `kind: {kind}`", abouts[kind], own)
    yield from _below(models[0], common, prefix)


def _table(title: str, about: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"## {title}\n"
    if about:
        yield f"{about}\n"
    yield "| key | type | default | description |"
    yield "|---|---|---|---|"
    for cells in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _row(model: type[BaseModel], name: str) -> tuple[str, ...]:
    field = model.model_fields[name]
    return f"`{name}`", _type_of(field), _default_of(field), field.description or ""


def _about(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n")[0]


def _below(model: type[BaseModel], names: Sequence[str], prefix: str) -> Iterator[str]:
    """The sections under the keys of a section."""
    for name in names:
        annotation = model.model_fields[name].annotation
        key = f"{prefix}{name}" + ("[]" if get_origin(annotation) is list else "")
        sections = sections_of(annotation)
        if len(sections) > 1:
            yield from _kinds(sections, f"`{key}`", f"{key}.")
        elif sections:
            yield from _section(sections[0], f"`{key}`", f"{key}.")


def _type_of(field: FieldInfo) -> str:
    limits = [
        f"{sign} {_number(getattr(rule, attribute))}"
        for rule in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(rule, attribute)
    ]
    return ", ".join([_name_of(field.annotation), *limits])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _name_of(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name_of(inside[0])
    if origin is Literal:
        return " or ".join(f"`{option}`" for option in inside)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_name_of(choice) for choice in inside if choice is not NoneType))
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
    page: Path = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(render(), encoding="utf-8")  # git has the older one
