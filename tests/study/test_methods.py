"""The methods of a study: rules with arguments, and what their columns are called."""

from __future__ import annotations

import pytest

import workspaces
from ortholora.errors import UserError
from ortholora.runs.method import Method
from ortholora.study.methods import methods_of


def listed(*entries: object) -> list[Method]:
    return methods_of(workspaces.config(study={"methods": list(entries)}))[2:]


def test_a_rule_with_arguments_is_a_column_of_its_own() -> None:
    found = listed("gradnorm", "gradnorm(alpha=2, start=1)", {"name": "mild", "rule": "gradnorm(alpha=0.5)"})
    assert [(method.name, method.rule) for method in found] == [
        ("gradnorm", "gradnorm"),
        ("gradnorm-alpha-2-start-1", "gradnorm(alpha=2, start=1)"),
        ("mild", "gradnorm(alpha=0.5)"),
    ]


def test_a_rule_of_ones_own_is_called_by_its_attribute() -> None:
    (found,) = listed("engine._rules:Means(memory=0.5)")
    assert (found.name, found.rule) == ("Means-memory-0.5", "engine._rules:Means(memory=0.5)")


@pytest.mark.parametrize("rule", ["gradnorm(alpha=-1)", "gradnorm(gamma=1)", "gradnorm(alpha=2", "famo(beta=0)"])
def test_wrong_arguments_are_found_before_training(rule: str) -> None:
    with pytest.raises(UserError, match=r"cannot be used(?s:.*)expected: (?s:.*)found: (?s:.*)to do: "):
        listed(rule)


def test_groups_are_in_the_order_of_the_configuration() -> None:
    (found,) = listed({"name": "two", "groups": [["score", "topic"], ["pair"]]})
    assert found.groups == (("topic", "score"), ("pair",))
    assert found.adapters_of(["topic", "pair", "score"]) == [("topic", "score"), ("pair",)]


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ([["topic", "pair"]], "'score' in none of them"),
        ([["topic", "pair"], ["pair", "score"]], "'pair' in 2 of them"),
        ([["topic", "pair"], ["sc0re"]], "unknown task 'sc0re'"),
        ([["topic", "pair", "score"]], "one group"),
        ([["topic", "pair", "score"], []], "an empty group"),
    ],
)
def test_groups_that_are_no_division_of_the_tasks(groups: list[list[str]], found: str) -> None:
    with pytest.raises(UserError, match="no division of the tasks") as error:
        listed({"name": "two", "groups": groups})
    assert error.value.found == found


def test_a_merge_takes_no_groups() -> None:
    with pytest.raises(UserError, match="merges finished adapters"):
        listed({"name": "m", "rule": "merge-linear", "groups": [["topic"], ["pair", "score"]]})
