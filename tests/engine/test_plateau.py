"""`plateau` against a loop over its equation, what it does for a stuck task, and what it says of its arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ortholora.engine import RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.rules import Balanced, Plateau, get_rule
from ortholora.engine.rules.plateau import SMOOTHING
from ortholora.errors import RuleError

from .test_gradnorm import context_of
from .test_rule_contract import gradients as drawn
from .test_rule_contract import progress


def transcribed(stack: Tensor, losses: Tensor, lift: float, start: int) -> Tensor:
    """The equation of `Plateau`, task by task and block by block, of the last of the steps `[S, T]`."""
    weight = {}
    for t in range(losses.shape[1]):
        running, seen = 1.0, []
        for loss in losses[:, t].tolist():
            if loss == loss:
                seen.append(loss)
                first = seen[:start]
                running = SMOOTHING * running + (1 - SMOOTHING) * loss / (sum(first) / len(first))
        weight[t] = 1 + (lift - 1) * min(1.0, max(0.0, (running - 0.75) / (0.95 - 0.75)))
    rows = []
    for block in stack.double():
        there = [t for t in range(len(block)) if float(block[t].norm()) > 0]
        mean_length = sum(float(block[t].norm()) for t in there) / len(there)
        mean_weight = sum(weight[t] for t in there) / len(there)
        rows.append(sum(mean_length * weight[t] / mean_weight * block[t] / block[t].norm() for t in there))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("lift", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("start", [1, 3])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_equals_its_transcription(lift: float, start: int, tasks: int) -> None:
    rule, losses = Plateau(lift, start=start), progress(tasks, 6)
    if tasks > 1:
        losses[[0, 3], 1] = torch.nan  # absent in the first step, and later
    for step in range(6):
        stack = drawn(4, tasks, seed=step)
        stack[:, losses[step].isnan()] = 0
        if tasks > 2:
            stack[2, 0] = 0
        weights = rule(unit_trace(stack @ stack.mT), context_of(losses[step], step))
        found = torch.einsum("nt,ntk->nk", weights.double(), stack.double())
        torch.testing.assert_close(found, transcribed(stack, losses[: step + 1], lift, start), rtol=1e-4, atol=1e-6)


def after(losses: list[list[float]], rule: Plateau) -> Tensor:
    gram = unit_trace(torch.eye(len(losses[0])).expand(1, -1, -1))
    for step, row in enumerate(losses):
        weights = rule(gram, context_of(torch.tensor(row), step))
    return weights[0]


def test_a_stuck_task_gets_lift_times_the_length_of_one_that_learns() -> None:
    stuck, learns = after([[0.7, 1.6]] * 10 + [[0.7, 0.2]] * 40, Plateau(lift=4))
    assert float(stuck / learns) == pytest.approx(4, rel=1e-5)
    assert float(stuck + learns) == pytest.approx(2, rel=1e-5)  # the length of the update is that of `balanced`


def test_the_lift_ends_when_the_task_has_begun_to_learn() -> None:
    weights = after([[0.7, 1.6]] * 10 + [[0.4, 0.2]] * 40, Plateau())
    torch.testing.assert_close(weights, torch.ones(2))


def test_no_task_gets_less_than_its_bound_however_long_others_are_stuck() -> None:
    weights = after([[0.7, 1.6, 0.7]] * 10 + [[0.9, 1e-6, 0.8]] * 100, Plateau(lift=4))
    assert float(weights.min() / weights.sum()) >= 1 / (4 * 3)


def test_one_noisy_loss_does_not_move_much() -> None:
    calm = after([[1.0, 1.0]] * 20, Plateau())
    shaken = after([[1.0, 1.0]] * 19 + [[1.0, 0.7]], Plateau())
    torch.testing.assert_close(calm, shaken, atol=0.1, rtol=0)


def test_a_lift_of_one_is_balanced() -> None:
    stack = drawn(5, 3, seed=4)
    gram, context = unit_trace(stack @ stack.mT), context_of(torch.tensor([1.0, 2.0, 0.1]))
    torch.testing.assert_close(Plateau(lift=1)(gram, context), Balanced()(gram, context))


def test_a_negative_loss_is_refused_by_name() -> None:
    with pytest.raises(RuleError, match=r"'b' cannot be used(?s:.*)at least 0: `plateau`(?s:.*)found:    -0\.5"):
        Plateau()(unit_trace(torch.eye(2).expand(1, 2, 2)), context_of(torch.tensor([1.0, -0.5])))


def test_arguments_by_name() -> None:
    rule = get_rule("plateau(lift=2, stuck=0.9, learning=0.5, start=3)")
    assert isinstance(rule, Plateau)
    assert (rule.lift, rule.stuck, rule.learning, rule.start) == (2.0, 0.9, 0.5, 3)
    with pytest.raises(ValueError, match=r"should be for Plateau\(lift=2.*Found one for lift=4, stuck=0.95"):
        rule.load_state_dict(Plateau().state_dict())
    for wrong in ("lift=0.5", "lift=float('inf')", "stuck=1.5", "learning=0.96", "learning=0", "start=0"):
        with pytest.raises(ValueError, match=r"lift|learning|start"):
            get_rule(f"plateau({wrong})")


def test_a_resumed_rule_goes_on() -> None:
    losses, gram = progress(3, 6), unit_trace(torch.eye(3).expand(2, 3, 3))
    whole, first, second = Plateau(start=2), Plateau(start=2), Plateau(start=2)
    for step in range(3):
        whole(gram, context_of(losses[step], step))
        first(gram, context_of(losses[step], step))
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        context: RuleContext = context_of(losses[step], step)
        assert torch.equal(whole(gram, context), second(gram, context))
