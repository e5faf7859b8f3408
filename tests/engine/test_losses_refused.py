"""A loss that a rule cannot take is told in its own step: which task, what was expected, what to do."""

from __future__ import annotations

import pytest
import torch

from ortholora.engine import OrthoLora
from ortholora.engine.rules import RULES
from ortholora.errors import RuleError

from . import _models as models
from ._asserts import assert_same, gradients, run_step

LOOKING = [name for name, rule in RULES.items() if getattr(rule, "needs_losses", False)]
#: Those that take logarithms.
OF_LOGS = ["famo", "db-mtl"]


def test_there_are_rules_that_look() -> None:
    assert {"gradnorm", *OF_LOGS} <= set(LOOKING)


@pytest.mark.parametrize(
    ("rule", "losses", "expected"),
    [
        *((name, [1.0, -2.0], "losses") for name in LOOKING),
        *((name, [1.0, 0.0], "a first loss above 0") for name in OF_LOGS),
        *((name, [1.0, float("nan")], "finite") for name in LOOKING),
    ],
)
def test_it_is_named_and_the_step_is_still_there(rule: str, losses: list[float], expected: str) -> None:
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"], rule)
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 1, 0, 1]))])
    before, state = gradients(sample.model), ortho.state_dict()["rule_state"]
    with pytest.raises(RuleError) as caught:
        ortho.resolve(losses=(torch.tensor(losses), torch.ones(2)))
    assert "'b'" in caught.value.what
    assert expected in caught.value.expected
    assert f"{losses[1]:g}" in caught.value.found
    assert caught.value.todo
    assert_same(gradients(sample.model), before, 0.0)
    assert str(ortho.state_dict()["rule_state"]) == str(state)
    ortho.resolve(losses=(torch.ones(2), torch.ones(2)))


@pytest.mark.parametrize("rule", LOOKING)
def test_a_zero_that_is_no_first_loss_is_taken(rule: str) -> None:
    """A batch learned by heart has a cross-entropy of 0."""
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"], rule)
    for losses in ([1.0, 1.0], [0.5, 0.0]):
        sample.model.zero_grad()
        run_step(ortho, sample.model, [(sample, torch.tensor([0, 1, 0, 1]))])
        stats = ortho.resolve(losses=(torch.tensor(losses), torch.ones(2)))
    assert bool(stats.weights.isfinite().all())
