"""`balanced` and `balanced-ortho` against what they say of themselves, on stacks and on a real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora, RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.rules import Balanced, BalancedOrtho
from ortholora.engine.rules.ortho import visit_order

from . import _models as models
from ._asserts import assert_gradients, gradients, oracle

SEED = 11


def of_equal_length(stack: Tensor) -> Tensor:
    """`[T, numel]` float64: every gradient gets the mean of the lengths of those that have one."""
    length = stack.double().norm(dim=1)
    mean = length[length > 0].mean() if bool(length.any()) else 0
    return torch.stack([g * mean / n if n > 0 else g * 0 for g, n in zip(stack.double(), length, strict=True)])


def transcribed(stack: Tensor, order: Tensor, projected: bool) -> Tensor:
    equal = of_equal_length(stack)
    if not projected:
        return equal.sum(0)
    rows = []
    for i, visits in enumerate(order.tolist()):
        h = equal[i]
        for j in visits:
            if h @ equal[j] < 0:
                h = h - (h @ equal[j]) / (equal[j] @ equal[j]) * equal[j]
        rows.append(h)
    return torch.stack(rows).sum(0)


@pytest.mark.parametrize("rule", [Balanced, BalancedOrtho])
@pytest.mark.parametrize("tasks", [1, 2, 3, 6])
@pytest.mark.parametrize("spread", [1.0, 1e3, 1e9])
def test_equals_its_transcription(rule: type, tasks: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(tasks)
    stack = torch.randn(12, tasks, 10, generator=generator) * torch.logspace(0, 1, tasks)[:, None]
    stack[:, -1] *= spread
    stack[3, 0] = 0
    stack[4] = 0
    context = RuleContext(tuple("abcdef"[:tasks]), torch.ones(tasks, dtype=torch.bool), 0, generator)
    generator.manual_seed(SEED)
    answer = rule()(unit_trace(stack @ stack.mT), context)
    weights = answer.sum(1) if answer.dim() == 3 else answer
    order = visit_order(12, tasks, torch.Generator().manual_seed(SEED))
    for n in range(12):
        found = weights[n].double() @ stack[n].double()
        expected = transcribed(stack[n], order[n], rule is BalancedOrtho)
        size = float(of_equal_length(stack[n]).norm(dim=1).max())
        assert float((found - expected).norm()) <= 1e-4 * size


def test_a_length_out_of_reach_is_left_out() -> None:
    """At 1e-18 of the block's length a gradient is still balanced; at 1e-20 it counts as zero."""
    stack = torch.tensor([[[1.0, 0.0], [0.0, 1e-18]], [[1.0, 0.0], [0.0, 1e-20]]])
    context = RuleContext(("a", "b"), torch.ones(2, dtype=torch.bool), 0, torch.Generator())
    weights = Balanced()(unit_trace(stack @ stack.mT), context)
    torch.testing.assert_close(torch.einsum("nt,ntk->nk", weights, stack), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
@pytest.mark.parametrize("rule", ["balanced", "balanced-ortho"])
def test_a_real_model_keeps_its_directions_when_a_loss_grows(rule: str, block: Any) -> None:
    """Law 10 through the engine: one task's loss times 1e-6, 1000 or 1e6."""
    sample = models.bert(8, 4)
    ids = torch.arange(8) % 3
    updates = []
    for factor in (1.0, 1e-6, 1000.0, 1e6):
        model = sample.fork()
        ortho = OrthoLora(model, ["a", "b", "c"], rule=rule, block=block, seed=SEED)
        with ortho.batch(ids):
            first, *others = models.task_losses(models.token_losses(model, sample), ids, 3)
            (first * factor + sum(others)).backward()
        stats = ortho.resolve()
        assert (stats.combination is not None) == (rule == "balanced-ortho")
        updates.append((stats, gradients(model)))
    reference_stats, reference = updates[0]
    for _, found in updates[1:]:
        for names in members(reference_stats.blocks, list(reference)):
            a, b = (torch.cat([g[name].flatten() for name in names]) for g in (found, reference))
            assert float((a / a.norm() - b / b.norm()).norm()) < 1e-3, names


def members(blocks: tuple[str, ...], names: list[str]) -> list[list[str]]:
    return [[name for name in names if block in ("all", name) or name.startswith(f"{block}.")] for block in blocks]


def test_a_real_model_gets_the_balanced_sum_of_every_matrix() -> None:
    sample = models.bert(6, 3)
    ids = torch.tensor([0, 1, 2, 0, 1, 1])
    expected = oracle(sample.fork(), [(sample, ids)], 4)  # the fourth task is absent
    ortho = OrthoLora(sample.model, list("abcd"), rule="balanced")
    with ortho.batch(ids):
        sum(models.task_losses(models.token_losses(sample.model, sample), ids, 4)).backward()  # type: ignore[union-attr]
    stats = ortho.resolve()
    assert not stats.weights[:, 3].any()
    balanced = {name: of_equal_length(g.flatten(1)).sum(0).view_as(g[0]).float() for name, g in expected.items()}
    assert_gradients(sample.model, balanced, 1e-4)
