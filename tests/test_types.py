"""What type checkers of users see: every public name has a type that is written down, not inferred."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import ortholora

ROOT = Path(__file__).resolve().parent.parent


def missing(code: str, name: str) -> list[str]:
    """What has no type in a class or function of a module: arguments, results, and the attributes that `__init__` sets.

    Every checker infers the same of an argument alone, and of a call of a class.
    """
    found = []
    top = next(node for node in ast.parse(code).body if getattr(node, "name", None) == name)
    functions = (
        [top] if isinstance(top, ast.FunctionDef) else [n for n in ast.walk(top) if isinstance(n, ast.FunctionDef)]
    )
    for function in functions:
        if function.name.startswith("_") and function.name not in {"__init__", "__call__"}:
            continue
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        found += [
            f"{function.name}({a.arg})" for a in arguments if a and not a.annotation and a.arg not in {"self", "cls"}
        ]
        found += [] if function.returns else [f"{function.name}() ->"]
        if function.name == "__init__":
            found += untyped_attributes(function, {a.arg for a in arguments if a}, declared(top))
    return found


def declared(top: ast.AST) -> set[str]:
    """Names of the attributes that a class types in its body, or anywhere in its `__init__`."""
    targets = [node.target for node in ast.walk(top) if isinstance(node, ast.AnnAssign)]
    return {getattr(target, "id", getattr(target, "attr", "")) for target in targets}


def untyped_attributes(function: ast.FunctionDef, arguments: set[str], typed: set[str]) -> list[str]:
    """Public attributes that are set to something whose type a checker has to guess."""
    found = []
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for target in node.targets:
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            paired = values if len(values) == len(targets) else [node.value] * len(targets)
            for one, value in zip(targets, paired, strict=True):
                own = isinstance(one, ast.Attribute) and getattr(one.value, "id", "") == "self"
                if not own or one.attr.startswith("_") or one.attr in typed:
                    continue
                named = getattr(value, "id", None) in arguments
                made = isinstance(value, ast.Call) and getattr(value.func, "id", "a")[0].isupper()
                if not named and not made:
                    found.append(f"self.{one.attr}")
    return found


#: Declared by the Trainer, by the class above, or by the model's class (`collator`).
INHERITED = {"self.compute_loss_func", "self.data_collator", "self.model_accepts_loss_kwargs", "self.ortho"}
INHERITED |= {"self.loss_is_scaled_for_ga", "self.collator"}


@pytest.mark.parametrize("name", [*ortholora.__all__, "Predictor"])
def test_every_public_name_is_typed(name: str) -> None:
    if name == "OrthoSFTTrainer":
        pytest.importorskip("trl")
    home: Any = importlib.import_module("ortholora.models.predictor") if name == "Predictor" else ortholora
    source = inspect.getsourcefile(getattr(home, name))
    assert source is not None
    found = missing(Path(source).read_text(encoding="utf-8"), name)
    assert [what for what in found if what not in INHERITED] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("class A:\n  def f(self, x): ...", ["f(x)", "f() ->"]),
        (
            "class A:\n  def __init__(self, x: int, **k) -> None:\n    self.x, self.y = x, list(x)",
            ["__init__(k)", "self.y"],
        ),
        ("class A:\n  y: int\n  def __init__(self) -> None:\n    self.y = f()\n    self._z = f()", []),
        ("def A(x: int):\n  ...", ["A() ->"]),
    ],
)
def test_the_check_finds_what_is_missing(code: str, found: list[str]) -> None:
    assert missing(code, "A") == found


def test_the_type_checkers_are_told() -> None:
    """PEP 561; `pyproject.toml` puts the file into the wheel."""
    assert (ROOT / "src" / "ortholora" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
