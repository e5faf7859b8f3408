"""Read a configuration from YAML with `--set` overrides, and write it back.

Torch-free and without pandas or datasets, so that a mistake in the file shows at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ortholora.config.bounds import read_text
from ortholora.config.keys import set_key
from ortholora.config.messages import to_user_error
from ortholora.config.schema import Config
from ortholora.config.yaml import LONGEST, dump, parse, problem_of
from ortholora.errors import UserError

#: Most bytes of a configuration that are read; anything longer is something else.
_MOST_BYTES = 4 * LONGEST


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


def config_of(text: str, where: str) -> Config:
    """Validate a configuration that is no file yet.

    Args:
        text: YAML that holds a mapping.
        where: How messages name it.

    Raises:
        UserError: It does not describe a configuration; one message lists every problem.
    """
    return _validate(parse(text), where)


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
        return key.strip(), parse(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"--set {text}: the value cannot be read",
            expected="a value in YAML",
            found=problem_of(error),
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
    return dump(config.model_dump(mode="json"))


def _validate(raw: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise to_user_error(error, raw, where) from None


def _read_mapping(path: Path) -> dict[str, Any]:
    todo = "give a YAML file; `ortholora init FILES` writes one for your data"
    try:
        raw = parse(read_text(path, _MOST_BYTES))
    except yaml.YAMLError as error:
        raise UserError(
            f"{path} is not valid YAML",
            expected="YAML: `key: value` lines, sections indented by spaces",
            found=problem_of(error),
            todo="correct this line or the one before it",
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read",
            expected="a text file in UTF-8",
            found=f"byte {error.object[error.start]:#04x} at position {error.start}",
            todo="save the file as UTF-8",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        found = "a folder" if os.path.isdir(path) else str(getattr(error, "strerror", None) or error)
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
    folder = path if os.path.isdir(path) else path.parent
    if not os.path.isdir(folder):
        return None
    names = sorted(str(file) for file in folder.iterdir() if file.suffix in {".yaml", ".yml"} and file.is_file())
    return f"give one of the files that are there: {', '.join(names[:8])}" if names else None
