"""The losses that rules are given: who must give them, what they become, and what is refused before anything moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora, RuleContext
from ortholora.engine.losses import mean_losses
from ortholora.errors import RuleError

from . import _models as models
from ._asserts import gradients, run_step

IDS = torch.tensor([0, 1, 0, 0])


class Watching:
    """The plain sum; keeps what it saw."""

    needs_losses = True

    def __init__(self) -> None:
        self.seen: list[Tensor | None] = []

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        self.seen.append(context.losses)
        return torch.ones(gram.shape[:2])


def prepared(rule: Any) -> OrthoLora:
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=rule)
    run_step(ortho, sample.model, [(sample, IDS)])
    return ortho


def test_a_rule_sees_means_and_nan_for_a_task_without_losses() -> None:
    rule = Watching()
    prepared(rule).resolve(losses=(torch.tensor([6.0, 0.5, 9.0]), torch.tensor([3, 1, 1])))
    assert rule.seen[0] is not None
    torch.testing.assert_close(rule.seen[0], torch.tensor([2.0, 0.5, torch.nan]), equal_nan=True)  # nobody had c


def test_a_task_with_a_gradient_and_no_loss_is_named() -> None:
    """A rule would take it for absent, or for one that has not moved; where nothing of it is learned, it may be."""
    ortho = prepared(Watching())
    with pytest.raises(RuleError, match=r"'b' has a gradient in this step, and no loss(?s:.*)`balanced`"):
        ortho.resolve(losses=(torch.tensor([6.0, 0.0, 0.0]), torch.tensor([3, 0, 0])))
    sample, rule = models.bert(4, 3), Watching()
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=rule)
    with ortho.batch(IDS):
        (models.token_losses(sample.model, sample).sum(1) * (IDS == 0)).sum().backward()  # b has rows, and no targets
    ortho.resolve(losses=(torch.tensor([6.0, 0.0, 0.0]), torch.tensor([3, 0, 0])))
    assert rule.seen[0] is not None
    torch.testing.assert_close(rule.seen[0], torch.tensor([2.0, torch.nan, torch.nan]), equal_nan=True)


def test_a_rule_that_does_not_ask_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """And pays nothing: the losses are not even looked at."""
    monkeypatch.setattr("ortholora.engine.ortho_lora.mean_losses", lambda *_: pytest.fail("a collective"))
    rule = Watching()
    rule.needs_losses = False
    prepared(rule).resolve(losses=(torch.ones(3), torch.ones(3)))
    assert rule.seen == [None]
    prepared("balanced").resolve()


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        (None, "no losses"),
        (torch.ones(3), r"one tensor \[3\]"),
        ((torch.ones(3), torch.ones(2)), r"\[3\], \[2\]"),
        ((torch.ones(3), 4), r"\[3\], int"),
        ([1.0, 2.0, 3.0], "list"),
    ],
)
def test_losses_must_be_given_to_a_rule_that_asks(losses: Any, found: str) -> None:
    ortho = prepared("gradnorm")
    before = {name: g.clone() for name, g in gradients(ortho._attachment._model).items()}
    with pytest.raises(RuleError, match=rf"looks at the tasks' losses(?s:.*)\(sums, counts\)(?s:.*)found:    {found}"):
        ortho.resolve(losses=losses)
    assert all(torch.equal(g, before[name]) for name, g in gradients(ortho._attachment._model).items())
    ortho.resolve(losses=(torch.ones(3), torch.ones(3)))  # the step is still there


def test_a_loss_that_is_no_number_is_named() -> None:
    ortho = prepared("gradnorm")
    with pytest.raises(RuleError, match=r"The loss of task 'b' cannot(?s:.*)finite(?s:.*)found:    nan"):
        ortho.resolve(losses=(torch.tensor([1.0, torch.nan, torch.nan]), torch.ones(3)))
    with pytest.raises(RuleError, match=r"The loss of task 'a' cannot(?s:.*)found:    -inf"):
        mean_losses(
            (torch.tensor([-torch.inf]), torch.ones(1)), ["a"], torch.ones(1, dtype=torch.bool), torch.device("cpu")
        )
