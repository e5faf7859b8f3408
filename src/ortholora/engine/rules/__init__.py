"""Conflict rules: Gram `[N, T, T]` → weights `[N, T]`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from ortholora.engine.rules.adatask import AdaTask as AdaTask
from ortholora.engine.rules.balanced import Balanced as Balanced
from ortholora.engine.rules.balanced import BalancedOrtho as BalancedOrtho
from ortholora.engine.rules.balanced_signal import BalancedSignal as BalancedSignal
from ortholora.engine.rules.base import Rule as Rule
from ortholora.engine.rules.base import RuleContext as RuleContext
from ortholora.engine.rules.db_mtl import DbMtl as DbMtl
from ortholora.engine.rules.famo import Famo as Famo
from ortholora.engine.rules.gradnorm import GradNorm as GradNorm
from ortholora.engine.rules.gradvac import GradVac as GradVac
from ortholora.engine.rules.moco import MoCo as MoCo
from ortholora.engine.rules.named import built, split_arguments
from ortholora.engine.rules.ortho import Ortho as Ortho
from ortholora.engine.rules.ortho_sure import OrthoSure as OrthoSure
from ortholora.engine.rules.plateau import Plateau as Plateau
from ortholora.engine.rules.sdmgrad import SDMGrad as SDMGrad
from ortholora.engine.rules.sum import Sum as Sum
from ortholora.engine.rules.torchjd import PREFIX
from ortholora.engine.rules.torchjd import TorchJD as TorchJD
from ortholora.errors import nearest

#: The rules that have a name. `tests/engine/test_rule_contract.py` tests every one.
RULES: dict[str, Callable[..., Rule]] = {
    "sum": Sum,
    "ortho": Ortho,
    "balanced": Balanced,
    "balanced-ortho": BalancedOrtho,
    "gradnorm": GradNorm,
    "plateau": Plateau,
    "famo": Famo,
    "db-mtl": DbMtl,
    "adatask": AdaTask,
    "balanced-signal": BalancedSignal,
    "ortho-sure": OrthoSure,
    "gradvac": GradVac,
    "sdmgrad": SDMGrad,
    "moco": MoCo,
}


def get_rule(rule: str | Rule) -> Rule:
    """Turn a name, `torchjd:NAME`, or `module:attribute` of a rule of one's own, into a rule; a rule passes through.

    All three may have arguments: `gradnorm(alpha=2)`.

    Raises:
        ValueError: The name is unknown, what it names is no rule or takes no such arguments, or TorchJD cannot
            offer it.
    """
    if not isinstance(rule, str):
        if not callable(rule) or isinstance(rule, type):
            raise ValueError(f"A rule should be a name or a callable (gram, context). Found {rule!r}.")
        return rule
    name, arguments = split_arguments(rule)
    if name in RULES:
        return built(RULES[name], name, arguments)
    if name.startswith(PREFIX):
        return built(functools.partial(TorchJD, name.removeprefix(PREFIX)), name, arguments)
    if ":" not in name:
        near = nearest(name, RULES)
        guess = f"Did you mean {near!r}? " if near else ""
        raise ValueError(
            f"Unknown rule {name!r}. {guess}Known rules: {', '.join(RULES)}; or '{PREFIX}NAME' for one of TorchJD's; "
            "or name your own as 'module:attribute'."
        )
    return _import_rule(name, arguments)


def _import_rule(path: str, arguments: dict[str, Any]) -> Rule:
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"The rule {path!r} could not be imported ({error}). Give 'module:attribute' of a module that "
            "Python finds (on PYTHONPATH, or in the folder you start from)."
        ) from error
    if arguments and not isinstance(found, type):
        raise ValueError(f"Only a class takes arguments, and {path!r} is none. Found {found!r}.")
    rule = built(found, path, arguments) if isinstance(found, type) else found
    if not callable(rule):
        raise ValueError(f"{path!r} should be a callable (gram, context) or a class of such. Found {rule!r}.")
    return rule
