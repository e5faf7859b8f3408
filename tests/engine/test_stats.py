"""The numbers of `StepStats` against the plainest computation of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora, StepStats
from ortholora.engine.rules.ortho import visit_order

from . import _models as models
from ._asserts import assert_close, gradients, oracle, run_step

IDS = torch.tensor([0, 1, 2, 0, 1, 2, 1, 0])
TASKS = ("a", "b", "c")


def step(block: Any = "matrix", rule: Any = "ortho") -> tuple[StepStats, list[Tensor], models.Sample]:
    """Return the stats, `[T, numel]` of every block, and the model after resolve."""
    sample = models.bert(8, 3)
    captured = oracle(sample.fork(), [(sample, IDS)], 3)
    ortho = OrthoLora(sample.model, TASKS, rule=rule, block=block)
    run_step(ortho, sample.model, [(sample, IDS)])
    stats = ortho.resolve()
    flat = {name: g.flatten(1) for name, g in captured.items()}
    if block == "matrix":
        return stats, list(flat.values()), sample
    layers = [name.split(".lora_")[0] if block == "layer" else "all" for name in flat]
    members = [torch.cat([g for g, at in zip(flat.values(), layers, strict=True) if at == b], 1) for b in stats.blocks]
    assert list(stats.blocks) == list(dict.fromkeys(layers))
    return stats, members, sample


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_gram_cosines_and_conflicts(block: Any) -> None:
    stats, blocks, _ = step(block)
    counts = torch.zeros(3, 3, dtype=torch.long)
    for n, g in enumerate(blocks):
        for i in range(3):
            for j in range(3):
                dot = float(g[i] @ g[j])
                cosine = dot / float(g[i].norm() * g[j].norm())
                assert float(stats.gram[n, i, j]) == pytest.approx(dot, rel=1e-3, abs=1e-5 * float((g * g).sum()))
                assert float(stats.cosines[n, i, j]) == pytest.approx(cosine, abs=1e-4)
                assert bool(stats.conflicts[n, i, j]) == (cosine < 0)
                counts[i, j] += cosine < 0
    assert torch.equal(stats.conflict_counts, counts)
    whole = torch.cat(blocks, 1)
    whole = whole / whole.norm(dim=1, keepdim=True)
    assert_close(stats.total_cosines, whole @ whole.T, 1e-4)


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_removed(block: Any) -> None:
    stats, blocks, sample = step(block)
    written = gradients(sample.model)
    at = 0
    flat = torch.cat([g.flatten() for g in written.values()])
    for n, g in enumerate(blocks):
        weighted = (stats.weights[n][:, None] * g).sum(0)
        expected = float((g.sum(0) - weighted).norm() / g.sum(0).norm())
        assert float(stats.removed[n]) == pytest.approx(expected, abs=2e-3)
        if block != "layer":  # matrices of a layer are not neighbours among parameters in every model
            assert_close(flat[at : at + g.shape[1]], weighted, 1e-4)
            at += g.shape[1]
    assert block == "all" or float(stats.removed.max()) > 0


def test_removed_of_sum_is_zero() -> None:
    stats, _, _ = step(rule="sum")
    assert torch.equal(stats.removed, torch.zeros(len(stats.blocks)))
    assert stats.removed_pairs is None


@pytest.mark.parametrize("rule", ["balanced", "balanced-ortho"])
def test_removed_is_what_the_projection_takes(rule: str) -> None:
    """Not what balancing changes: in a rule that only balances it is nothing."""
    stats, blocks, _ = step(rule=rule)
    assert (stats.removed > 0).any() == (rule == "balanced-ortho")
    for n, g in enumerate(blocks):
        length = g.norm(dim=1)
        equal = (g * length.mean() / length[:, None]).sum(0)
        expected = float((equal - (stats.weights[n][:, None] * g).sum(0)).norm() / equal.norm())
        assert float(stats.removed[n]) == pytest.approx(expected, abs=2e-3)
        assert float(stats.rescaled[n]) == pytest.approx(float((g.sum(0) - equal).norm() / g.sum(0).norm()), abs=2e-3)
    assert bool((stats.rescaled > 0.01).any())


@pytest.mark.parametrize("rule", ["sum", "ortho", "gradvac"])
def test_projection_rescales_nothing(rule: str) -> None:
    assert not bool(step(rule=rule)[0].rescaled.any())


def test_what_a_rule_with_weights_alone_changes_is_scaling() -> None:
    stats, blocks, _ = step(rule="engine._rules:first_task_only")
    assert not bool(stats.removed.any())
    for n, g in enumerate(blocks):
        expected = float((g[1] + g[2]).norm() / g.sum(0).norm())
        assert float(stats.rescaled[n]) == pytest.approx(expected, abs=2e-3)


def test_removed_pairs() -> None:
    stats, blocks, _ = step()
    order = visit_order(len(blocks), 3, torch.Generator().manual_seed(0))
    assert stats.removed_pairs is not None
    for n, g in enumerate(blocks):
        expected = torch.zeros(3, 3)
        for i in range(3):
            h = g[i].clone()
            for j in order[n, i].tolist():
                dot = float(h @ g[j])
                if dot < 0:
                    piece = dot / float(g[j] @ g[j]) * g[j]
                    h = h - piece
                    expected[i, j] = piece.norm() / g[i].norm()
        torch.testing.assert_close(stats.removed_pairs[n], expected, rtol=1e-2, atol=1e-3)
    assert bool(stats.removed_pairs.any())


def test_stats_outlive_the_step() -> None:
    """They hold their own tensors, not the buffers that the next step fills."""
    sample = models.bert(8, 3)
    ortho = OrthoLora(sample.model, TASKS)
    run_step(ortho, sample.model, [(sample, IDS)])
    stats = ortho.resolve()
    before = [t.clone() for t in (stats.gram, stats.weights, stats.combination, stats.present)]
    sample.model.zero_grad()
    run_step(ortho, sample.model, [(sample, IDS.flip(0) * 0 + 1)])
    ortho.resolve()
    now = (stats.gram, stats.weights, stats.combination, stats.present)
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    assert stats.present.tolist() == [True] * 3


def test_zero_gradients_have_cosine_zero() -> None:
    gram = torch.zeros(2, 3, 3)
    gram[0, 0, 0] = 4.0
    nothing = torch.ones(2, 3)
    stats = StepStats(TASKS, ("x", "y"), gram, nothing, None, torch.ones(3, dtype=torch.bool))
    expected = torch.zeros(2, 3, 3)
    expected[0, 0, 0] = 1.0
    assert torch.equal(stats.cosines, expected)
    assert not bool(stats.conflicts.any())
    assert torch.equal(stats.removed, torch.zeros(2))
