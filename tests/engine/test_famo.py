"""`famo` against a loop over Algorithm 1, and what it does with losses that have no logarithm."""

from __future__ import annotations

import math

import pytest
import torch

from ortholora.engine import RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.rules import Famo
from ortholora.errors import RuleError

from .test_gradnorm import context_of
from .test_rule_contract import gradients as drawn
from .test_rule_contract import progress


def transcribed(losses: list[list[float]], beta: float, gamma: float) -> list[list[float]]:
    """Algorithm 1, one number at a time, with `L(θ_{k+1})` from the next step: every step's `c z_t / L_t`.

    Adam is torch's, as in the paper's Algorithm 2.
    """
    tasks = range(len(losses[0]))
    parameter = torch.zeros(len(tasks), dtype=torch.float64, requires_grad=True)
    adam, weights = torch.optim.Adam([parameter], lr=beta, weight_decay=gamma), []
    for k, now in enumerate(losses):
        z = softmax(parameter.tolist())
        c = 1 / sum(z[t] / now[t] for t in tasks)
        weights.append([c * z[t] / now[t] for t in tasks])
        if k + 1 == len(losses):
            break
        fell = [math.log(now[t]) - math.log(losses[k + 1][t]) for t in tasks]
        jacobian = [[z[s] * ((s == t) - z[t]) for t in tasks] for s in tasks]  # ∂z_s / ∂ξ_t
        delta = [sum(jacobian[s][t] * fell[s] for s in tasks) for t in tasks]
        parameter.grad = torch.tensor(delta, dtype=torch.float64)
        adam.step()
    return weights


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in values]
    return [e / sum(exponentials) for e in exponentials]


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize(("beta", "gamma"), [(0.025, 0.001), (2.0, 0.1)])
def test_equals_its_transcription(tasks: int, beta: float, gamma: float) -> None:
    rule, losses = Famo(beta, gamma), progress(tasks, 8).double()
    expected = transcribed(losses.float().double().tolist(), beta, gamma)
    for step, of_step in enumerate(losses.float()):
        stack = drawn(3, tasks, seed=step)
        found = rule(unit_trace(stack @ stack.mT), context_of(of_step, step))
        torch.testing.assert_close(found, tasks * torch.tensor(expected[step]).expand(3, -1))


def test_a_task_whose_loss_falls_faster_loses_weight() -> None:
    rule, gram = Famo(beta=1.0), unit_trace(torch.eye(2).expand(1, 2, 2))
    rule(gram, context_of(torch.tensor([1.0, 1.0])))
    weights = rule(gram, context_of(torch.tensor([0.1, 0.9]))) * torch.tensor([0.1, 0.9])  # z, up to a factor
    assert float(weights[0, 0]) < float(weights[0, 1])


def test_an_absent_tasks_weight_waits() -> None:
    """Its fall is counted from its own last step, and while it is away it moves nobody."""
    rule, other, gram = Famo(beta=1.0), Famo(beta=1.0), unit_trace(torch.eye(2).expand(1, 2, 2))
    alone = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    for losses in ([4.0, 1.0], [2.0, torch.nan], [3.0, 0.5]):
        of_step = torch.tensor(losses)
        found = rule(alone if of_step.isnan().any() else gram, context_of(of_step))
    for losses in ([2.0, 1.0], [3.0, 0.5]):
        expected = other(gram, context_of(torch.tensor(losses)))
    assert torch.equal(rule(alone, context_of(torch.tensor([1.0, torch.nan]))), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(found, expected)


def test_losses_without_a_logarithm() -> None:
    gram = unit_trace(torch.eye(2).expand(1, 2, 2))
    with pytest.raises(RuleError, match=r"'b' cannot be used(?s:.*)logarithms(?s:.*)found:    -1"):
        Famo()(gram, context_of(torch.tensor([1.0, -1.0])))
    with pytest.raises(RuleError, match=r"'a' cannot be used(?s:.*)first loss above 0(?s:.*)found:    0"):
        Famo()(gram, context_of(torch.tensor([0.0, 1.0])))
    rule = Famo()
    rule(gram, context_of(torch.tensor([1.0, 1.0])))
    assert bool(rule(gram, context_of(torch.tensor([0.0, 1.0]))).isfinite().all())  # a batch that is learned by heart


def test_what_its_arguments_may_be() -> None:
    for beta, gamma in ((0.0, 0.0), (math.inf, 0.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="beta should be above 0"):
            Famo(beta, gamma)
    with pytest.raises(ValueError, match=r"should be for Famo\(beta=1, gamma=0\.001\)\. Found one for beta=0\.025"):
        Famo(1.0).load_state_dict(Famo().state_dict())


def test_a_context_without_losses_is_the_engines_fault() -> None:
    with pytest.raises(AssertionError):
        Famo()(torch.eye(2)[None], RuleContext(("a", "b"), torch.ones(2, dtype=torch.bool), 0, torch.Generator()))
