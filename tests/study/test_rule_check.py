"""A rule that cannot be used is told before any training, in three parts: expected, found, what to do."""

from __future__ import annotations

import sys

import pytest

from engine._rules import Means
from ortholora.engine.rules import RULES
from ortholora.errors import UserError
from ortholora.study.methods import check_rule


class Both(Means):
    """Asks for two things that exclude each other."""

    halves = True


def told(rule: str) -> UserError:
    with pytest.raises(UserError) as caught:
        check_rule(rule)
    assert all((caught.value.what, caught.value.expected, caught.value.found, caught.value.todo))
    assert rule.partition("(")[0] in caught.value.what
    return caught.value


@pytest.mark.parametrize("name", [*RULES, "engine._rules:Halved", "torchjd:MGDA"])
def test_a_rule_that_can_be_used(name: str) -> None:
    check_rule(name)


@pytest.mark.parametrize(
    ("rule", "expected", "found"),
    [
        ("gradvac(beta=2)", "beta should be in (0, 1)", "2"),
        ("balanced-signal(floor=0)", "floor in (0, 1]", "floor=0"),
        ("gradnorm(alpha=-1)", "alpha should be", "-1"),
        ("sum(alpha=2)", "arguments that it takes", "alpha=2"),
        ("torchjd:MGDA(c=1)", "arguments that it takes", "c=1"),
        ("sdmgrad(0.3)", "should look like 'gradnorm(alpha=2)'", "sdmgrad(0.3)"),
        ("study.test_rule_check:Both", "one of `halves`, `memory` and `precondition`", "Both"),
        ("engine._rules:Means(memory=3)", "decay in (0, 1)", "3"),
        ("engine._rules:not_a_rule", "callable", "3"),
        ("torchjd:PCD", "torchjd:NAME", "its first task is the main one"),
        ("torchjd:Nothing", "torchjd:NAME", "knows no such weighting"),
    ],
)
def test_what_it_cannot_take_is_told_as_such(rule: str, expected: str, found: str) -> None:
    error = told(rule)
    assert expected in error.expected
    assert found in error.found


def test_a_near_name_is_suggested() -> None:
    assert "balanced-signal" in told("balanced-signl").todo
    assert told("gradnrm(alpha=2)").todo == "did you mean `gradnorm`?"


def test_a_method_that_is_no_rule() -> None:
    assert "`sum`" in told("joint").todo
    for method in ("single", "joint-wide", "merge-ties"):
        assert "method of `ortholora compare`" in told(method).todo


def test_torchjd_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    assert "pip install torchjd" in told("torchjd:MGDA").todo
