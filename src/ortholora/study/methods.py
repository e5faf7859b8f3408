"""The methods of a study: `single` and `joint` always, and every rule asked for."""

from __future__ import annotations

from ortholora.config import Config, MethodConfig
from ortholora.config_file import with_settings
from ortholora.engine.rules import get_rule
from ortholora.errors import UserError
from ortholora.training.method import JOINT, SINGLE, Method

_RESERVED = {SINGLE: None, JOINT: None}


def methods_of(config: Config) -> list[Method]:
    """List the methods in the order of the table, and check what can be checked before training.

    Raises:
        UserError: An unknown rule, two methods of one name, or wrong settings of a method.
    """
    methods = [Method(SINGLE), Method(JOINT)]
    for entry in config.study.methods:
        if entry in _RESERVED:
            continue
        methods.append(
            _method(entry if isinstance(entry, MethodConfig) else MethodConfig(name=entry, rule=entry), config)
        )
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


def check_rule(rule: str) -> None:
    """Check that a rule exists.

    Raises:
        UserError: It does not.
    """
    try:
        get_rule(rule)
    except ValueError as error:
        raise UserError(
            f"Unknown rule {rule!r}",
            expected="a known rule, or 'module:attribute' of your own",
            found=str(error),
            todo="correct `rule` or `study.methods` in the configuration",
        ) from error


def _method(entry: MethodConfig, config: Config) -> Method:
    check_rule(entry.rule)
    with_settings(config, entry.set)
    return Method(entry.name, entry.rule, entry.block or config.block, dict(entry.set))
