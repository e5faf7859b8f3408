"""Rules by name, with arguments where wanted: `gradnorm`, `gradnorm(alpha=2)`, `torchjd:CAGrad(c=0.3)`."""

from __future__ import annotations

import ast
from typing import Any


def split_arguments(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name(key=value, …)` into the name and its arguments. Values are Python literals; nothing is run.

    Raises:
        ValueError: What follows the name is no list of `key=value`.
    """
    name, bracket, rest = text.partition("(")
    if not bracket:
        return text, {}
    problem = f"A rule with arguments should look like 'gradnorm(alpha=2)'. Found {text!r}."
    try:
        call = ast.parse(f"rule({rest}", mode="eval").body
    except SyntaxError as error:
        raise ValueError(problem) from error
    # One call, whose brackets end with the text: `a(b=1)(c=2)` and `a(b=1) + 1` are something else.
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(problem)
    names = [keyword.arg for keyword in call.keywords]
    if None in names or len(set(names)) < len(names):  # `**{…}`, or one of them twice
        raise ValueError(problem)
    try:
        return name.strip(), {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError) as error:
        raise ValueError(problem) from error


def built(make: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Make a rule of a class with arguments.

    Raises:
        ValueError: It takes no such argument, or not such a value.
    """
    try:
        return make(**arguments)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"The rule {name!r} should get arguments that it takes. Found ({given}): {error}.") from error
