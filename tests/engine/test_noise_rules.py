"""The rules that see through noise, each against a loop over its equations, and what they are for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.rules import Balanced, BalancedSignal, GradVac, MoCo, Ortho, OrthoSure, SDMGrad
from ortholora.engine.rules.ortho import visit_order
from ortholora.engine.rules.simplex import onto_simplex

from .test_rule_contract import gradients as drawn


def context(tasks: int, seed: int = 0, units: float | None = None) -> RuleContext:
    halves = None if units is None else torch.full((2, tasks), units)
    present = torch.ones(tasks, dtype=torch.bool)
    names = tuple(f"task{t}" for t in range(tasks))
    return RuleContext(names, present, 0, torch.Generator().manual_seed(seed), None, halves)


def gram_of(stack: Tensor) -> Tensor:
    return unit_trace(stack @ stack.mT)


def halves_of(seed: int, blocks: int = 3, tasks: int = 3, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Halves of gradients whose signals stay the same and whose noise does not."""
    signal, generator = drawn(blocks, tasks, seed=77) / 2, torch.Generator().manual_seed(seed)
    size = noise * signal.norm(dim=2, keepdim=True) / signal.shape[2] ** 0.5
    return tuple(signal + size * torch.randn(signal.shape, generator=generator) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("tasks", [2, 5])
def test_gradvac_equals_its_transcription(tasks: int) -> None:
    rule, beta, blocks = GradVac(beta=0.3), 0.3, 3
    targets = torch.zeros(blocks, tasks, tasks, dtype=torch.float64)
    raised = 0
    for step in range(4):
        stack = drawn(blocks, tasks, seed=step).double()
        stack = stack + (step % 2) * stack.mean(1, keepdim=True) * 3  # every other step in agreement
        order = visit_order(blocks, tasks, torch.Generator().manual_seed(step))
        expected = torch.zeros(blocks, stack.shape[2], dtype=torch.float64)
        for n in range(blocks):
            for i in range(tasks):
                h = stack[n, i].clone()
                for j in order[n, i].tolist():
                    g, usual = stack[n, j], float(targets[n, i, j])
                    phi = float(h @ g / (h.norm() * g.norm()))
                    if phi < usual:
                        raised += usual > 0
                        up = usual * math.sqrt(1 - phi**2) - phi * math.sqrt(1 - usual**2)
                        h = h + h.norm() * up / (g.norm() * math.sqrt(1 - usual**2)) * g
                    targets[n, i, j] = (1 - beta) * usual + beta * phi
                expected[n] += h
        found = rule(gram_of(stack.float()), context(tasks, seed=step)).sum(1).double()
        assert float(((found.unsqueeze(1) @ stack).squeeze(1) - expected).norm() / expected.norm()) < 1e-3
    assert raised > 0


def test_gradvac_in_pieces_is_gradvac(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for numbers in (2**18, 3 * 16):
        monkeypatch.setattr("ortholora.engine.rules.ortho.CACHED_NUMBERS", numbers)
        rule = GradVac(0.5)
        answers.append([rule(gram_of(drawn(7, 4, seed=step)), context(4, seed=step)) for step in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_gradvac_starts_as_ortho() -> None:
    gram = gram_of(drawn(20, 4))
    torch.testing.assert_close(GradVac()(gram, context(4)), Ortho()(gram, context(4)), rtol=1e-3, atol=1e-4)


def sure(cosines: list[Tensor], z: float, beta: float) -> Tensor:
    """Weighted mean, unbiased variance and standard error, written out."""
    weights = torch.tensor([beta ** (len(cosines) - 1 - k) for k in range(len(cosines))], dtype=torch.float64)
    values = torch.stack(cosines).double()
    at = weights.view(-1, 1, 1, 1)
    mean = (at * values).sum(0) / weights.sum()
    variance = (at * (values - mean) ** 2).sum(0) / (weights.sum() - (weights**2).sum() / weights.sum())
    error = (variance * (weights**2).sum() / weights.sum() ** 2).sqrt()
    return mean + z * error < 0


@pytest.mark.parametrize(("z", "beta"), [(2.0, 0.9), (0.5, 0.5)])
def test_ortho_sure_projects_where_conflict_is_sure(z: float, beta: float) -> None:
    rule, cosines, checked = OrthoSure(z, beta), [], 0
    shift = torch.tensor([[1.0], [-0.6], [0.3], [-0.2]]) * torch.randn(
        1, 24, generator=torch.Generator().manual_seed(5)
    )
    for step in range(8):
        gram = gram_of(torch.randn(30, 4, 24, generator=torch.Generator().manual_seed(step)) + 0.5 * shift)
        length = gram.diagonal(dim1=1, dim2=2).sqrt()
        cosines.append(gram / length.unsqueeze(1) / length.unsqueeze(2))
        found = rule(gram, context(4, seed=step))
        if step == 0:
            assert torch.equal(found, torch.eye(4).expand(30, 4, 4))
            continue
        allowed = sure(cosines, z, beta)
        # A pair that may not be projected counts as orthogonal when it is visited.
        order = visit_order(30, 4, torch.Generator().manual_seed(step))
        for n in range(30):
            for i in range(4):
                c = torch.eye(4)[i].double()
                for j in order[n, i].tolist():
                    dot = float(c @ gram[n, :, j].double())
                    if dot < 0 and allowed[n, i, j]:
                        c[j] -= dot / float(gram[n, j, j])
                        checked += 1
                assert float((found[n, i].double() - c).abs().max()) < 1e-4
    assert checked > 20


def test_ortho_sure_leaves_coin_flips_alone() -> None:
    """Without conflict few pairs are projected; with a steady one, all those."""
    rule, touched = OrthoSure(), 0.0
    steady = torch.tensor([[1.0], [-1.0], [0.0]]) * torch.nn.functional.normalize(torch.ones(1, 24))
    for step in range(40):
        gram = gram_of(torch.randn(50, 3, 24, generator=torch.Generator().manual_seed(step)) + 2 * steady)
        combination = rule(gram, context(3, seed=step))
    found = (combination - torch.eye(3)).abs() > 0
    assert float(found[:, 0, 1].float().mean()) > 0.6
    touched = float(found[:, 0, 2].float().mean() + found[:, 2, 0].float().mean()) / 2
    assert touched < 0.1


@pytest.mark.parametrize(("beta", "floor"), [(0.8, 0.1), (0.5, 0.6)])
def test_balanced_signal_equals_its_equations(beta: float, floor: float) -> None:
    rule, agreement = BalancedSignal(beta, floor), torch.ones(3, 3, dtype=torch.float64)
    for step in range(5):
        a, b = halves_of(step, noise=3.0)
        found = rule(gram_of(torch.cat([a, b], 1)), context(3, units=4.0))
        for n in range(3):
            lengths = []
            for t in range(3):
                x, y = a[n, t].double(), b[n, t].double()
                r = float(x @ y / (0.5 * (x @ x + y @ y)))
                agreement[n, t] = beta * agreement[n, t] + (1 - beta) * r
                share = max(float(2 * agreement[n, t] / (1 + agreement[n, t])), floor)
                lengths.append(float((x + y).norm()) * math.sqrt(share))
            expected = torch.tensor([sum(lengths) / 3 / length for length in lengths])
            torch.testing.assert_close(found[n], expected, rtol=1e-3, atol=1e-4)


def test_balanced_signal_gives_signals_one_length() -> None:
    """One task has four times the other's noise: `balanced` gives it less signal, this rule as much."""
    rule, weights, lengths = BalancedSignal(floor=0.01), [], []
    signal = torch.nn.functional.normalize(torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0)), dim=2) / 2
    noise = torch.tensor([[0.2], [0.8]]) / 8
    for step in range(300):
        generator = torch.Generator().manual_seed(step)
        a, b = (signal + noise * torch.randn(20, 2, 64, generator=generator) for _ in range(2))
        found, stack = rule(gram_of(torch.cat([a, b], 1)), context(2, units=4.0)), a + b
        if step >= 100:
            weights.append(found.mean(0))
            lengths.append(Balanced()(gram_of(stack), context(2)).mean(0))
    ours, raw = torch.stack(weights).mean(0), torch.stack(lengths).mean(0)
    assert float(raw[0] / raw[1]) > 1.2
    assert float(ours[0] / ours[1]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("values", [[[0.2, 0.3, 0.5]], [[2.0, 0.0, -1.0]], [[0.6, 0.6, 0.6]], [[-5.0, -5.1, -9.0]]])
def test_the_simplex_is_met_at_its_nearest_point(values: Any) -> None:
    given, there = torch.tensor(values), torch.ones(1, 3, dtype=torch.bool)
    found = onto_simplex(given, there)
    assert float(found.sum()) == pytest.approx(1)
    grid = torch.linspace(0, 1, 201)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    points = torch.stack([first, second, 1 - first - second], -1).view(-1, 3)
    points = points[points[:, 2] >= -1e-6]
    assert float((found - given).norm()) <= float((points - given).norm(dim=1).min()) + 1e-3
    assert torch.equal(onto_simplex(given, torch.tensor([[True, False, False]])), torch.tensor([[1.0, 0.0, 0.0]]))


def test_sdmgrad_equals_its_transcription() -> None:
    rule, lam, share = SDMGrad(lam=0.3, steps=20), 0.3, torch.full((3, 3), 1 / 3, dtype=torch.float64)
    one = torch.ones(1, 3, dtype=torch.bool)
    for step in range(3):
        a, b = halves_of(step)
        found = rule(gram_of(torch.cat([a, b], 1)), context(3, units=4.0))
        for n in range(3):
            x, y = a[n].double(), b[n].double()
            inner = (x + y) @ (x + y).T
            inner.diagonal().copy_(4 * (x * y).sum(1))
            inner = inner / inner.abs().sum(1).max()
            for _ in range(20):
                share[n] = onto_simplex((share[n] - inner @ (share[n] + lam / 3))[None], one)[0]
            expected = 3 * (share[n] + lam / 3) / (1 + lam)
            torch.testing.assert_close(found[n].double(), expected, rtol=1e-3, atol=1e-3)
    assert bool((SDMGrad(lam=1e6)(gram_of(torch.cat([a, b], 1)), context(3, units=4.0)) - 1).abs().max() < 1e-3)


def test_moco_equals_its_transcription() -> None:
    rule, share = MoCo(beta=0.2, gamma=0.3, rho=0.1), torch.full((3, 3), 1 / 3, dtype=torch.float64)
    one = torch.ones(1, 3, dtype=torch.bool)
    for step in range(4):
        now, means = drawn(3, 3, seed=step), drawn(3, 3, seed=100 + step)
        found = rule(gram_of(torch.cat([now, means], 1)), context(3))
        assert not bool(found[:, :3].any())
        for n in range(3):
            y = means[n].double()
            inner = y @ y.T / (y * y).sum(1).mean()
            slope = (inner + 0.1 * torch.eye(3)) @ share[n]
            share[n] = onto_simplex((share[n] - 0.3 * slope)[None], one)[0]
            torch.testing.assert_close(found[n, 3:].double(), 3 * share[n], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", [BalancedSignal, OrthoSure, GradVac, SDMGrad])
def test_a_step_that_overflowed_leaves_no_trace(rule: Any) -> None:
    """A GradScaler skips it; a NaN in a running mean would stay for ever."""
    halved = rule.__dict__.get("halves", False)
    steps = [torch.cat(halves_of(k), 1) if halved else drawn(3, 3, seed=k) for k in range(3)]
    broken, clean = rule(), rule()
    for k, stack in enumerate(steps):
        if k == 1:
            broken(torch.full_like(gram_of(stack), torch.nan), context(3, units=4.0))
        found, expected = (r(gram_of(stack), context(3, seed=k, units=4.0)) for r in (broken, clean))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: BalancedSignal(beta=1.0), "beta should be in"),
        (lambda: BalancedSignal(floor=0.0), "floor in"),
        (lambda: OrthoSure(z=-1), "z should be at least 0"),
        (lambda: GradVac(beta=0), "beta should be in"),
        (lambda: SDMGrad(lam=-1), "lam should be at least 0"),
        (lambda: SDMGrad(steps=0.5), "steps a number"),
        (lambda: MoCo(beta=2), "beta should be in"),
        (lambda: MoCo(gamma=0), "gamma above 0"),
        (lambda: BalancedSignal(0.5).load_state_dict(BalancedSignal().state_dict()), r"beta=0\.5.*beta=0\.95"),
        (lambda: OrthoSure(1.0).load_state_dict(OrthoSure().state_dict()), r"z=1, .*z=2"),
        (lambda: GradVac(0.5).load_state_dict(GradVac().state_dict()), r"beta=0\.5.*beta=0\.01"),
        (lambda: SDMGrad(0.5).load_state_dict(SDMGrad().state_dict()), r"lam=0\.5.*lam=0\.3"),
        (lambda: MoCo(0.5).load_state_dict(MoCo().state_dict()), r"beta=0\.5.*beta=0\.1"),
    ],
)
def test_what_they_cannot_take(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make()
