"""The values that a sweep tries, and what is wrong with them before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ortholora.config.file import with_settings
from ortholora.config.schema import Config
from ortholora.errors import UserError
from ortholora.runs.method import Method
from ortholora.study.methods import MERGE_KEYS, idle_keys

Settings = dict[str, Any]


def keys_of(entry: str) -> list[str]:
    """The dotted keys of an entry: one, or several that move together, with commas between them."""
    return [key.strip() for key in entry.split(",")]


def has(settings: Settings, entry: str) -> bool:
    """Whether settings have a value for an entry: a merge's and a training's have entries of their own."""
    return all(key in settings for key in keys_of(entry))


def value_at(settings: Settings, entry: str) -> Any:
    """What settings have for an entry, in the form of its listed values."""
    values = [settings[key] for key in keys_of(entry)]
    return values if len(values) > 1 else values[0]


def _settings_of(entry: str, value: Any) -> Settings:
    keys = keys_of(entry)
    return dict(zip(keys, value if len(keys) > 1 else [value], strict=True))


def combinations(values: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Every combination of the values, the last entry's changing fastest."""
    chosen = itertools.product(*([_settings_of(entry, value) for value in listed] for entry, listed in values.items()))
    return [{key: value for part in parts for key, value in part.items()} for parts in chosen]


def combinations_of(method: Method, values: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """The combinations that a method tries: a merge those of its own keys, every other method those of the others."""
    return combinations({key: listed for key, listed in values.items() if _takes(method, key)})


def _takes(method: Method, key: str) -> bool:
    if method.merge is None or not key.startswith(MERGE_KEYS):
        return method.merge is None and not key.startswith(MERGE_KEYS)
    return method.merge != "linear" or key not in (f"{MERGE_KEYS}density", f"{MERGE_KEYS}rank")


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
    _check_entries(sweep.values)
    _check_merges(sweep.values, methods)
    keys = [key for entry in sweep.values for key in keys_of(entry)]
    if idle := idle_keys(key for key in keys if not key.startswith(MERGE_KEYS)):
        raise UserError(
            f"study.sweep.values: {idle[0]!r} cannot be chosen for each method",
            expected="settings of the adapter, the mixing or the training, or a task's weight",
            found=idle[0],
            todo="give it for the whole study, or make a study for each value",
        )
    for entry, values in sweep.values.items():
        _check_values(entry, values)
    for key in keys:
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
    _check_folders(sweep.values, methods)


def _check_entries(values: Mapping[str, Sequence[Any]]) -> None:
    """Keys that move together have a value each, and no key has two entries."""
    keys = [key for entry in values for key in keys_of(entry)]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(
            f"study.sweep.values: {twice[0]!r} twice",
            expected="every key in one entry",
            found=", ".join(map(repr, values)),
            todo="remove it from one of them",
        )
    for entry, listed in values.items():
        together = keys_of(entry)
        if len(together) == 1:
            continue
        if merged := [key for key in together if key.startswith(MERGE_KEYS)]:
            raise UserError(
                f"study.sweep.values: {merged[0]!r} cannot move together with others",
                expected="settings of merges in entries of their own",
                found=repr(entry),
                todo=f"give `{merged[0]}` an entry of its own",
            )
        for value in listed:
            if not isinstance(value, list) or len(value) != len(together):
                raise UserError(
                    f"study.sweep.values: {entry!r} has keys that move together",
                    expected=f"a list of {len(together)} values, one for each of them, at every place",
                    found=repr(value),
                    todo=f"write each as [{', '.join(key.rpartition('.')[2].upper() for key in together)}]",
                )


def _check_merges(values: Mapping[str, Sequence[Any]], methods: Sequence[Method]) -> None:
    """The settings of merges: somebody takes them, and the single adapters that are merged are tried with something."""
    own = [key for key in values if key.startswith(MERGE_KEYS)]
    idle = [key for key in own if not any(_takes(method, key) for method in methods)]
    if idle:
        raise UserError(
            f"study.sweep.values: no method of the study takes {idle[0]!r}",
            expected="a method that does: `merge-ties` or `merge-dare`; `merge-linear` takes scale and weights",
            found=", ".join(method.name for method in methods),
            todo="add one to `study.methods`, or remove the key",
        )
    if own and len(own) == len(values):
        raise UserError(
            "study.sweep.values: only settings of merges",
            expected="a setting of the training besides: the single adapters that are merged are its trials",
            found=", ".join(own),
            todo="add one, such as training.learning_rate: [1e-3, 2e-3]",
        )


def _check_folders(values: Mapping[str, Sequence[Any]], methods: Sequence[Method]) -> None:
    for method in methods:
        _check_names([folder_name(settings) for settings in combinations_of(method, values)])


def _check_names(names: Sequence[str]) -> None:
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
