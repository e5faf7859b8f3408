"""The methods of a study: `single` and `joint` always, and every rule and baseline asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from ortholora.config.choose import check_known
from ortholora.config.file import with_settings
from ortholora.config.schema import Config
from ortholora.config.sections import MethodConfig
from ortholora.engine.requests import check_requests
from ortholora.engine.rules import RULES, get_rule
from ortholora.errors import UserError, did_you_mean, listing
from ortholora.runs.method import JOINT, JOINT_WIDE, MERGES, SINGLE, Method

#: What a method's `set` cannot change: the study's own keys, and the data, which is read once for all and cut alike.
_OF_THE_STUDY = (
    "study",
    "init_from",
    "rule",
    "block",
    "seed",
    "data_seed",
    "tasks",
    "backbone",
    "revision",
    "max_length",
)
#: Settings of the methods that merge adapters, and of no other.
MERGE_KEYS = "study.merge."
_WEIGHT = re.compile(r"tasks\..+\.weight")


def methods_of(config: Config) -> list[Method]:
    """List the methods in the order of the table, and check what can be checked before training.

    Raises:
        UserError: An unknown rule, two methods of one name, or wrong settings of a method.
    """
    methods = [Method(SINGLE), Method(JOINT)]
    for entry in config.study.methods:
        if isinstance(entry, str) and entry in (SINGLE, JOINT):
            continue
        methods.append(_joint_wide(config) if entry == JOINT_WIDE else _method(_as_entry(entry), config))
    names = [method.name for method in methods]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"Two methods are called {twice[0]!r}",
            expected="a name of its own for every entry of `study.methods`",
            found=", ".join(names),
            todo="rename or remove one",
        )
    return methods


def _joint_wide(config: Config) -> Method:
    """Joint training with T times the rank: the parameters of T single adapters, and the same scaling."""
    tasks, lora = len(config.tasks), config.lora
    # alpha / r, or alpha / sqrt(r) with rslora, stays what it is.
    alpha = lora.alpha * (math.sqrt(tasks) if lora.rslora else tasks)
    return Method(JOINT_WIDE, overrides={"lora.r": lora.r * tasks, "lora.alpha": alpha})


def check_rule(rule: str) -> None:
    """Check that a rule exists and asks for what there is.

    Raises:
        UserError: It does not.
    """
    try:
        check_requests(get_rule(rule))
    except UserError:  # has its three parts already
        raise
    except Exception as error:  # importing a rule of the user's own runs their code
        what = f"The rule {rule!r} cannot be used"
        if isinstance(error, ValueError) and ". Found " in str(error):
            # The rule is there, and says what it cannot take: "beta should be in (0, 1). Found 2."
            expected, _, found = str(error).rstrip(".").partition(". Found ")
            todo = "correct the rule's arguments (docs/rules.md), or the module it is in"
            raise UserError(what, expected=expected, found=found, todo=todo) from error
        found = str(error).partition(". ")[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(
            what,
            expected=f"one of {listing(RULES)}, `torchjd:NAME`, or `module:attribute` of a module on PYTHONPATH or in "
            "this folder",
            found=found,
            todo=_advice(rule.partition("(")[0]),
        ) from error


def _advice(name: str) -> str:
    """What to do about a name that is no rule's."""
    if name == JOINT:
        return "take `sum`, which is joint training"
    if name in (SINGLE, JOINT_WIDE, *MERGES):
        return f"take a rule: `{name}` is a method of `ortholora compare`, and is named in `study.methods` alone"
    return did_you_mean(name, RULES, "correct `rule` or `study.methods` in the configuration, or the module")


def idle_keys(keys: Iterable[str]) -> list[str]:
    """Those of some dotted keys that are the study's own: no method can set them for itself."""
    return [key for key in keys if key.partition(".")[0] in _OF_THE_STUDY and not _WEIGHT.fullmatch(key)]


def _as_entry(entry: str | MethodConfig) -> MethodConfig:
    """A rule by name alone; one of the user's own is called by its attribute, `gradnorm(alpha=2)` gradnorm-alpha-2."""
    if isinstance(entry, MethodConfig):
        return entry
    if entry in MERGES:
        return MethodConfig(name=entry, rule=entry)
    check_rule(entry)
    name, bracket, arguments = entry.partition("(")
    own = name.rpartition(":")[2] + bracket + arguments
    return MethodConfig(name=re.sub(r"[^A-Za-z0-9_.-]+", "-", own).strip("-"), rule=entry)


def _merge(entry: MethodConfig, config: Config) -> Method:
    odd = [key for key in entry.set if not key.startswith(MERGE_KEYS)]
    own = {"block": entry.block, "groups": entry.groups}
    found = [f"{key} = {entry.set[key]!r}" for key in odd] + [f"{k} = {v!r}" for k, v in own.items() if v is not None]
    if found:
        raise UserError(
            f"study.methods, {entry.name!r}: it merges finished adapters, and does not train",
            expected=f"settings that start with `{MERGE_KEYS}`",
            found=found[0],
            todo="remove it; what the single adapters are trained with is set for the whole study",
        )
    with_own = _with_own(entry, config)
    check_known("study.merge.weights", with_own.study.merge.weights, config)
    return Method(entry.name, None, config.block, dict(entry.set), MERGES[entry.rule])


def _with_own(entry: MethodConfig, config: Config) -> Config:
    """The configuration with the method's own settings."""
    try:
        return with_settings(config, entry.set)
    except UserError as error:
        what = error.what.removeprefix("--set ").removeprefix("the changed configuration: ")
        raise UserError(
            f"study.methods, {entry.name!r}: {what}", expected=error.expected, found=error.found, todo=error.todo
        ) from None


def _method(entry: MethodConfig, config: Config) -> Method:
    if entry.rule in MERGES:
        return _merge(entry, config)
    check_rule(entry.rule)
    if idle := idle_keys(entry.set):
        raise UserError(
            f"study.methods, {entry.name!r}: {idle[0]!r} cannot be set for one method alone",
            expected="settings of the adapter, the mixing or the training, or a task's weight",
            found=f"{idle[0]} = {entry.set[idle[0]]!r}",
            todo="use the method's own keys `rule` and `block`"
            if idle[0] in ("rule", "block")
            else "set it for the whole study, or make another one",
        )
    _with_own(entry, config)
    return Method(entry.name, entry.rule, entry.block or config.block, dict(entry.set), groups=_groups(entry, config))


def _groups(entry: MethodConfig, config: Config) -> tuple[tuple[str, ...], ...] | None:
    """The tasks of each adapter, in the order of the configuration; None for one adapter."""
    if entry.groups is None:
        return None
    named = [task for group in entry.groups for task in group]
    what = f"study.methods, {entry.name!r}: `groups` is no division of the tasks"
    expected = f"two groups or more with each of {listing(config.task_names)} in one of them"
    if unknown := [task for task in named if task not in config.task_names]:
        todo = did_you_mean(unknown[0], config.task_names, "correct or remove it")
        raise UserError(what, expected=expected, found=f"unknown task {unknown[0]!r}", todo=todo)
    counts = {task: named.count(task) for task in config.task_names}
    if odd := [task for task, count in counts.items() if count != 1]:
        found = f"{odd[0]!r} in {counts[odd[0]] or 'none'} of them"
        raise UserError(what, expected=expected, found=found, todo="name every task once")
    if len(entry.groups) < 2 or not all(entry.groups):
        found = "an empty group" if len(entry.groups) > 1 else "one group"
        raise UserError(what, expected=expected, found=found, todo="remove `groups` to train one adapter for all")
    return tuple(tuple(task for task in config.task_names if task in group) for group in entry.groups)
