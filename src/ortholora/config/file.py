"""Read a configuration from YAML with `--set` overrides, and write it back.

Torch-free and without pandas or datasets, so that a mistake in the file shows at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ortholora.config.keys import set_key
from ortholora.config.messages import to_user_error
from ortholora.config.schema import Config
from ortholora.errors import UserError

# PyYAML follows YAML 1.1, where `5e-4` is text because it has no dot; everybody means the number.
_FLOAT_WITHOUT_DOT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """`yaml.safe_load` that reads `5e-4` as a number and refuses a key that appears twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key_node.value}` appears twice", key_node.start_mark
                )
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """`yaml.safe_dump` that quotes the text "5e-4", since `_Loader` would read a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT_WITHOUT_DOT, list("-+0123456789"))


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a configuration.

    Args:
        path: A YAML file.
        overrides: Settings as `--set` takes them, for example `training.steps=50`; later ones win.

    Returns:
        The configuration.

    Raises:
        UserError: The file cannot be read, is not YAML, or does not describe a configuration; one message
            lists every problem.
    """
    raw = _read_mapping(path)
    for override in overrides:
        key, value = parse_override(override)
        set_key(raw, key, value)
    return _validate(raw, str(path))


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as YAML.

    Args:
        text: For example `tasks.cola.weight=2`.

    Returns:
        The dotted key and the value: `("tasks.cola.weight", 2)`.

    Raises:
        UserError: There is no `=`, no key, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"--set {text}",
            expected="key=value",
            found="no `=`" if not equals else "no key before `=`",
            todo="write it like --set training.steps=50",
        )
    try:
        return key.strip(), _parse(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"--set {text}: the value cannot be read",
            expected="a value in YAML",
            found=_problem(error),
            todo="put the value in quotes, for example --set 'backbone=\"name: x\"'",
        ) from None


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a copy of `config` with some dotted keys changed, validated anew.

    Args:
        config: The configuration to start from; it stays as it is.
        settings: Values by dotted key, for example `{"training.steps": 50}`.

    Raises:
        UserError: A key is unknown or a value does not fit.
    """
    raw = config.model_dump(mode="json")
    for key, value in settings.items():
        set_key(raw, key, value)
    return _validate(raw, "the changed configuration")


def dump_config(config: Config) -> str:
    """Return the whole configuration, defaults included, as YAML that loads back to the same."""
    raw = config.model_dump(mode="json")
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _validate(raw: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise to_user_error(error, raw, where) from None


def _parse(text: str) -> Any:
    # The loader is a SafeLoader, so this is `safe_load` with the two changes above.
    return yaml.load(text, Loader=_Loader)


def _read_mapping(path: Path) -> dict[str, Any]:
    todo = "give a YAML file; examples/own_data.yaml is the smallest example"
    try:
        raw = _parse(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise UserError(
            f"{path} is not valid YAML",
            expected="YAML: `key: value` lines, sections indented by spaces",
            found=_problem(error),
            todo="correct this line or the one before it",
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read",
            expected="a text file in UTF-8",
            found=f"byte {error.object[error.start]:#04x} at position {error.start}",
            todo="save the file as UTF-8",
        ) from None
    except OSError as error:
        found = "a folder" if path.is_dir() else f"{error.strerror}"
        raise UserError(
            f"{path} cannot be read", expected="a configuration file", found=found, todo=_nearby(path) or todo
        ) from None
    if not isinstance(raw, dict):
        found = "an empty file" if raw is None else f"a {type(raw).__name__}"
        raise UserError(
            f"{path} is no configuration", expected="keys such as `backbone:` and `tasks:`", found=found, todo=todo
        )
    return raw


def _nearby(path: Path) -> str | None:
    """Return a hint with the YAML files that are there instead."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return None
    names = sorted(str(file) for file in folder.iterdir() if file.suffix in {".yaml", ".yml"})
    return f"give one of the files that are there: {', '.join(names[:8])}" if names else None


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
