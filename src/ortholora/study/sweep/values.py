"""The values that a sweep tries, and what is wrong with them before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ortholora.config.file import with_settings
from ortholora.config.schema import Config
from ortholora.errors import UserError
from ortholora.runs.method import Method
from ortholora.study.methods import idle_keys

Settings = dict[str, Any]


def combinations(values: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination of the values, the last key's changing fastest."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def shown(settings: Mapping[str, Any]) -> str:
    """Settings for people: the last part of each key is enough."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items())


def folder_name(settings: Mapping[str, Any]) -> str:
    """Settings as the name of a folder."""
    text = shown(settings).replace(" ", "-").replace(",", "")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in text)


def check_sweep(config: Config, methods: Sequence[Method]) -> None:
    """Check `study.sweep` against the configuration and the methods.

    Raises:
        UserError: An unknown key, a value that it does not take, one that a method sets itself, or seeds twice.
    """
    sweep = config.study.sweep
    assert sweep is not None
    both = sorted(set(sweep.seeds) & set(config.study.seeds))
    if both or len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(
            "study.sweep.seeds cannot be used",
            expected="different seeds, none of them among `study.seeds`: what was chosen with a seed flatters it",
            found=f"{sweep.seeds}, and study.seeds {config.study.seeds}",
            todo="give other seeds to one of the two",
        )
    if idle := idle_keys(sweep.values):
        raise UserError(
            f"study.sweep.values: {idle[0]!r} cannot be chosen for each method",
            expected="settings of the adapter, the mixing or the training, or a task's weight",
            found=idle[0],
            todo="give it for the whole study, or make a study for each value",
        )
    for key, values in sweep.values.items():
        _check_values(key, values)
        for method in methods:
            if key in method.overrides:
                raise UserError(
                    f"study.sweep.values: the method {method.name!r} sets {key!r} itself",
                    expected="a key that no method sets: every method is tried with the same values",
                    found=f"{key} = {method.overrides[key]!r} in `study.methods`",
                    todo="remove it from the method, or from the sweep",
                )
    for settings in combinations(sweep.values):
        try:
            with_settings(config, settings)
        except UserError as error:
            what = error.what.removeprefix("--set ").removeprefix("the changed configuration: ")
            raise UserError(
                f"study.sweep.values: {what}", expected=error.expected, found=error.found, todo=error.todo
            ) from None
    names = [folder_name(settings) for settings in combinations(sweep.values)]
    if len(set(names)) < len(names):
        raise UserError(
            "study.sweep.values: two combinations would have one folder",
            expected="values that differ in more than punctuation",
            found=next(name for name in names if names.count(name) > 1),
            todo="change one of the values",
        )


def _check_values(key: str, values: Sequence[Any]) -> None:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if len(values) < 2 or twice:
        raise UserError(
            f"study.sweep.values: {key!r} has nothing to choose from",
            expected="a list of two different values or more",
            found=f"{values}",
            todo="add a value, or set the key for the whole study",
        )
