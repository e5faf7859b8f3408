"""`gradnorm` against a loop over its equation, on stacks and through the engine; and what it says of its arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora, RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.rules import GradNorm, get_rule
from ortholora.errors import RuleError

from . import _models as models
from ._asserts import assert_gradients, oracle
from .test_rule_contract import gradients as drawn
from .test_rule_contract import progress


def transcribed(stack: Tensor, losses: Tensor, alpha: float, start: int) -> Tensor:
    """Chen et al. 2018, section 3: `G_t = ‖g_t‖`, target `mean(G) · r_t^α`, of the last of the steps `[S, T]`."""
    ratios = {}
    for t in range(losses.shape[1]):
        seen = [float(loss) for loss in losses[:, t] if not loss.isnan()]
        if seen and not losses[-1, t].isnan():
            first = seen[:start]
            ratios[t] = seen[-1] / (sum(first) / len(first))
    rows = []
    for block in stack.double():
        there = [t for t in range(len(block)) if float(block[t].norm()) > 0]
        total = torch.zeros(block.shape[1], dtype=torch.float64)
        for t in there:
            mean_length = sum(float(block[s].norm()) for s in there) / len(there)
            rate = ratios[t] / (sum(ratios[s] for s in there) / len(there))
            total += mean_length * rate**alpha * block[t] / block[t].norm()
        rows.append(total)
    return torch.stack(rows)


def context_of(losses: Tensor, step: int = 0) -> RuleContext:
    return RuleContext(tuple("abcdefgh"[: len(losses)]), ~losses.isnan(), step, torch.Generator(), losses)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("start", [1, 2, 10])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_equals_its_transcription(alpha: float, start: int, tasks: int) -> None:
    rule, losses = GradNorm(alpha, start), progress(tasks, 5)
    if tasks > 1:
        losses[[0, 3], 1] = torch.nan  # absent in the first step, and later
    for step in range(5):
        stack = drawn(4, tasks, seed=step)
        stack[:, losses[step].isnan()] = 0
        stack[2, 0] = 0
        weights = rule(unit_trace(stack @ stack.mT), context_of(losses[step], step))
        found = torch.einsum("nt,ntk->nk", weights.double(), stack.double())
        expected = transcribed(stack, losses[: step + 1], alpha, start)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_task_that_lags_is_preferred() -> None:
    rule, gram = GradNorm(start=1), unit_trace(torch.eye(2).expand(3, 2, 2))
    torch.testing.assert_close(rule(gram, context_of(torch.tensor([2.0, 30.0]))), torch.ones(3, 2))
    weights = rule(gram, context_of(torch.tensor([1.0, 5.0])))
    torch.testing.assert_close(weights, torch.tensor([1.5, 0.5]).expand(3, 2))  # 1/2 and 1/6 over their mean


@pytest.mark.parametrize(("alpha", "most"), [(0.5, 2.0), (1.0, 4.0), (2.0, 16.0)])
def test_the_lengths_add_up_as_the_page_says(alpha: float, most: float) -> None:
    """`Σ r^α` over T: 1 with α = 1, `1 + var(r)` with α = 2, and T^α for one of T tasks that alone has not moved."""
    gram = unit_trace(torch.eye(4).expand(1, 4, 4))
    for losses in ([1.0, 0.0, 0.0, 0.0], [0.9, 0.2, 0.4, 0.1]):
        rule = GradNorm(alpha, start=1)
        rule(gram, context_of(torch.ones(4)))
        weights = rule(gram, context_of(torch.tensor(losses)))[0]
        rate = torch.tensor(losses) / torch.tensor(losses).mean()
        if losses[1] == 0:
            torch.testing.assert_close(weights, torch.tensor([most, 0.0, 0.0, 0.0]))
        if alpha >= 1:
            expected = {1.0: 1.0, 2.0: 1 + float(rate.var(correction=0))}[alpha]
            assert float(weights.mean()) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_zero_is_legal_and_a_negative_one_is_not() -> None:
    rule, gram = GradNorm(), unit_trace(torch.eye(2).expand(1, 2, 2))
    rule(gram, context_of(torch.tensor([1.0, 0.0])))
    torch.testing.assert_close(rule(gram, context_of(torch.zeros(2))), torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(GradNorm()(gram, context_of(torch.zeros(2))), torch.ones(1, 2))
    with pytest.raises(RuleError, match=r"'b' cannot be used(?s:.*)at least 0(?s:.*)found:    -0\.5"):
        GradNorm()(gram, context_of(torch.tensor([1.0, -0.5])))


def test_arguments_by_name() -> None:
    rule = get_rule("gradnorm(alpha=2, start=3)")
    assert isinstance(rule, GradNorm)
    assert (rule.alpha, rule.start) == (2.0, 3)
    with pytest.raises(
        ValueError, match=r"should be for GradNorm\(alpha=2, start=3\)\. Found one for alpha=1, start=10"
    ):
        rule.load_state_dict(GradNorm().state_dict())
    for wrong in ("gradnorm(alpha=-1)", "gradnorm(start=0)", "gradnorm(alpha='x')", "gradnorm(beta=1)"):
        with pytest.raises(ValueError, match=r"alpha|start|beta"):
            get_rule(wrong)


def test_through_the_engine_as_by_hand() -> None:
    """Three steps of a model, in micro-batches of unequal size; a task is absent in the second."""
    sample = models.bert(12, 3)
    apart = sample.fork()
    ortho, hand = OrthoLora(sample.model, list("abc"), rule=GradNorm(2.0, 1)), []
    for step, ids in enumerate(([0, 0, 1, 2, 2, 2], [2, 0, 0, 2, 2, 0], [1, 0, 2, 0, 1, 2])):
        parts = [(sample.rows(slice(6 + step, 8 + step)), ids[:2]), (sample.rows(slice(0, 4)), ids[2:])]
        expected = oracle(apart, [(part, torch.tensor(of)) for part, of in parts], 3)
        sums, counts = torch.zeros(3), torch.zeros(3)
        for part, of in parts:
            with ortho.batch(torch.tensor(of)):
                losses = models.token_losses(sample.model, part)
                sum(models.task_losses(losses, torch.tensor(of), 3)).backward()  # type: ignore[union-attr]
            sums.index_add_(0, torch.tensor(of), losses.detach().sum(1))
            counts += torch.bincount(torch.tensor(of), minlength=3)
        hand.append(sums / counts)
        ortho.resolve(losses=(sums, counts))
        updates = {
            name: transcribed(g.flatten(1)[None], torch.stack(hand), 2.0, 1)[0].view_as(g[0]).float()
            for name, g in expected.items()
        }
        assert_gradients(sample.model, updates, 1e-3)
        with torch.no_grad():
            for parameter in models.lora_parameters(sample.model).values():
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
            for other, parameter in zip(
                models.lora_parameters(apart).values(), models.lora_parameters(sample.model).values(), strict=True
            ):
                other.copy_(parameter)
