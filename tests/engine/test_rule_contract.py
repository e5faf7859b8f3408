"""What every rule must keep, and what some promise (laws 2, 4, 5, 6, 10). A new rule is tested by being in `RULES`."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.precondition import preconditioner_of
from ortholora.engine.rules import RULES, Rule, get_rule
from ortholora.engine.rules.base import factors_of, memory_of, needs_losses
from ortholora.engine.rules.torchjd import WEIGHTINGS, TorchJD
from ortholora.errors import UserError

#: What trains where no rule is named (`config.sections.RECOMMENDED_RULE`), with its own arguments.
DEFAULT = "gradnorm(alpha=2)"
ALL = [*RULES, DEFAULT, *(f"torchjd:{name}" for name in WEIGHTINGS)]

# Promises beyond the contract: a new rule need not be in them.
#: Tasks of equal lengths without conflict get exactly the plain sum.
SUMS = {
    *("sum", "ortho", "balanced", "balanced-ortho", "gradnorm", "famo", "adatask", "balanced-signal", "ortho-sure"),
    *("gradvac", "plateau", DEFAULT, "torchjd:PCGrad", "torchjd:Sum"),
}
# Exceptions from the contract: a new rule should not be in them.
#: Tasks that cannot be told apart do not get equal weights: one is drawn, or one is chosen.
UNEQUAL = {"torchjd:Random", "torchjd:Krum"}
#: A second or more for a block of many tasks.
SLOW = {"torchjd:FairGrad", "torchjd:GradVac"}

# What a rule says of itself.
SCALED = [name for name in ALL if getattr(RULES.get(name.partition("(")[0]), "scale_free_per_task", False)]
#: Its update has the length of gradients of log losses, unless there is one task in all.
OF_LOGS = [name for name in ALL if hasattr(RULES.get(name), "memory_factors")]


def rule_of(name: str) -> Rule:
    try:
        return get_rule(name)
    except UserError as error:
        if "to be installed" not in error.found:
            raise
        pytest.skip(error.found)


def progress(tasks: int, steps: int = 3, seed: int = 9) -> Tensor:
    """Losses `[steps, T]` that fall at different speeds, for rules that look at them."""
    generator = torch.Generator().manual_seed(seed)
    start = 10 ** (2 * torch.rand(tasks, generator=generator) - 1)
    return start * torch.rand(steps, tasks, generator=generator).clamp_min(0.1).cumprod(0)


def preconditioned(rule: Rule, stack: Tensor, step: int = 0) -> Tensor:
    """What a rule that wants to see gradients makes of them, before the Gram."""
    preconditioner = preconditioner_of(rule)
    if preconditioner is None:
        return stack
    result = preconditioner.transform(0, stack.float(), stack.abs().amax((0, 2)) > 0, step)
    assert bool(result.isfinite().all())
    return result


def decide(
    rule: Rule,
    stack: Tensor,
    seed: int = 0,
    step: int = 0,
    generator: torch.Generator | None = None,
    losses: Tensor | None = None,
) -> Tensor:
    """Weights `[N, T]` for a stack of task gradients `[N, T, numel]`, as the engine asks for them.

    A rule that looks at losses is asked once for every step of `losses [steps, T]`, and answers in the last; one with
    a state, so often. One with a memory sees running means that began in this step; what it gives to them is added to
    the weights. One that compares halves sees the gradients plus and minus some of what is not in them.
    """
    count = stack.shape[1]
    generator = generator or torch.Generator().manual_seed(seed)
    present = stack.abs().amax((0, 2)) > 0
    if not needs_losses(rule):
        losses = stack.new_ones(3 if remembers(rule) else 1, count)
    elif losses is None:
        losses = progress(count)
    for later, of_step in enumerate(losses):
        of_step = torch.where(present, of_step, torch.nan) if needs_losses(rule) else None
        context = RuleContext(tuple(f"task{t}" for t in range(count)), present, step + later, generator, of_step)
        answer = asked(rule, stack.float(), context)
    return answer


def remembers(rule: Rule) -> bool:
    """Whether the answer to the same Gram depends on earlier ones. (TorchJD's have state for their own tests.)"""
    return hasattr(rule, "state_dict") and not isinstance(rule, TorchJD)


def asked(rule: Rule, stack: Tensor, context: RuleContext) -> Tensor:
    size = count = stack.shape[1]
    factor = torch.ones(count)
    if memory_of(rule) is not None:
        given = factors_of(rule, context)
        factor = factor if given is None else given
        stack, size = torch.cat([stack, factor[:, None] * stack], dim=1), 2 * count
    if getattr(rule, "halves", False):
        context = dataclasses.replace(context, halves=context.present.float().repeat(2, 1))
        apart = 0.4 * stack.flip(2)  # of each task alone, and proportional to its gradient
        stack = torch.cat([(stack + apart) / 2, (stack - apart) / 2], dim=1)
    answer = rule(unit_trace(stack @ stack.mT), context)
    assert answer.dtype == torch.float32
    assert answer.shape in ((len(stack), size), (len(stack), count, size))
    assert bool(answer.isfinite().all())
    answer = answer if answer.dim() == 2 else answer.sum(1)
    return answer if size == count else answer[:, :count] + factor * answer[:, count:]


def update(rule: Rule, stack: Tensor, **how: Any) -> Tensor:
    stack = preconditioned(rule, stack)
    return torch.einsum("nt,ntk->nk", decide(rule, stack, **how).double(), stack.double())


def gradients(blocks: int, tasks: int, numel: int = 24, rank: int = 24, seed: int = 0) -> Tensor:
    """Task gradients of lengths that differ by some powers of ten; of a low rank they depend on one another."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 10 ** torch.rand(blocks, tasks, 1, generator=generator)
    left = torch.randn(blocks, tasks, rank, generator=generator)
    return lengths * (left @ torch.randn(blocks, rank, numel, generator=generator) / (rank * numel) ** 0.5)


def orthogonal(blocks: int, tasks: int) -> Tensor:
    return torch.linalg.qr(torch.randn(blocks, 24, 24, generator=torch.Generator().manual_seed(3)))[0][:, :tasks]


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest distance of two blocks' updates, relative to the size of what was expected."""
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)).max())


def directions_apart(found: Tensor, expected: Tensor) -> float:
    return float((torch.nn.functional.normalize(found) - torch.nn.functional.normalize(expected)).norm(dim=1).max())


def depends_on_draws(name: str) -> bool:
    try:
        first, again, other = (decide(get_rule(name), gradients(40, 3), seed=seed) for seed in (5, 5, 6))
    except UserError:
        return False  # not installed: its tests are skipped
    return torch.equal(first, again) and not torch.equal(first, other)


#: The answer depends on draws: it keeps a permutation of the tasks in the mean over draws.
DRAWN = {name for name in ALL if depends_on_draws(name)}


@pytest.mark.parametrize("name", ["ortho", "balanced-ortho", "torchjd:GradVac", "torchjd:PCGrad", "torchjd:Random"])
def test_the_search_finds_rules_that_draw(name: str) -> None:
    rule_of(name)
    assert name in DRAWN


def test_the_search_finds_what_rules_say_of_themselves() -> None:
    assert "db-mtl" in OF_LOGS
    assert {"balanced", "balanced-ortho", "gradnorm", DEFAULT, "plateau", "famo", "db-mtl"} <= set(SCALED)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("rank", [1, 24])
def test_weights_are_finite_and_of_the_right_shape(name: str, tasks: int, rank: int) -> None:
    if tasks == 64 and name in SLOW:
        pytest.skip("takes seconds for a block")
    decide(rule_of(name), gradients(2, tasks, rank=rank))


@pytest.mark.parametrize("name", ALL)
def test_one_task_keeps_its_plain_gradient(name: str) -> None:
    for scale in (1e-10, 1.0, 1e10):
        assert torch.equal(decide(rule_of(name), gradients(3, 1) * scale), torch.ones(3, 1))


@pytest.mark.parametrize("name", ALL)
def test_zero_gradients_are_legal(name: str) -> None:
    stack = gradients(4, 3)
    stack[0] = 0
    stack[1, 0] = 0
    stack[2, :2] = 0
    weights = decide(rule_of(name), stack)
    expected = 1 / float(progress(3)[-1, 2]) if name in OF_LOGS else 1
    assert float(weights[2, 2]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("absent", [0, 1, 2])
def test_an_absent_task_changes_nothing_for_the_others(name: str, absent: int) -> None:
    """Where visits are drawn, two others: the order in which each of them visits one is always the same."""
    for others in (2,) if name in DRAWN else (2, 3, 4):
        stack = gradients(3, others)
        with_absent = torch.cat([stack[:, :absent], torch.zeros(3, 1, 24), stack[:, absent:]], dim=1)
        losses = progress(others)
        with_its_own = torch.cat([losses[:, :absent], torch.ones(3, 1), losses[:, absent:]], dim=1)
        found = update(rule_of(name), with_absent, losses=with_its_own)
        expected = update(rule_of(name), stack, losses=losses)
        assert apart(found, expected) < 1e-4


@pytest.mark.parametrize("name", [name for name in ALL if name not in DRAWN])
@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_the_order_of_tasks_changes_nothing(name: str, tasks: int) -> None:
    stack, order = gradients(4, tasks), torch.randperm(tasks, generator=torch.Generator().manual_seed(2))
    found = decide(rule_of(name), stack[:, order], losses=progress(tasks)[:, order])
    expected = decide(rule_of(name), stack, losses=progress(tasks))[:, order]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_the_order_of_tasks_changes_nothing_in_the_mean_over_draws(name: str) -> None:
    blocks, order = 2000, torch.tensor([2, 0, 1])
    stack = torch.tensor([[1.0, 0.0, 0.2], [-0.8, 0.7, 0.1], [-0.3, -1.0, 0.4]]).expand(blocks, 3, 3)
    found, expected = decide(rule_of(name), stack[:, order], seed=1), decide(rule_of(name), stack, seed=2)[:, order]
    spread = (found.std(0) + expected.std(0)) / blocks**0.5
    assert bool(((found.mean(0) - expected.mean(0)).abs() < 5 * spread + 1e-5).all())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e10])
def test_the_size_of_a_block_changes_nothing(name: str, scale: float) -> None:
    stack = gradients(4, 3)
    found, expected = decide(rule_of(name), stack * scale), decide(rule_of(name), stack)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("scale", [1e-10, 1e-5, 0.3, 1000.0, 1e5, 1e10])
@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_the_size_of_one_loss_changes_no_direction(name: str, scale: float, tasks: int) -> None:
    """Law 10, for the rules that promise it; those that look at losses see the larger ones."""
    stack, losses = gradients(6, tasks), progress(tasks)
    expected = update(rule_of(name), stack, losses=losses)
    for task in range(tasks):
        factors = torch.ones(tasks, 1)
        factors[task] = scale
        found = update(rule_of(name), stack * factors, losses=losses * factors.squeeze(1))
        assert directions_apart(found, expected) < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_equal_lengths_without_conflict_get_the_direction_of_the_sum(name: str) -> None:
    stack, alike = orthogonal(5, 4), progress(1).expand(-1, 4)
    weights = decide(rule_of(name), stack, losses=alike)
    if name in SUMS:
        torch.testing.assert_close(weights, torch.ones(5, 4), rtol=1e-5, atol=1e-5)
    elif name not in UNEQUAL:
        assert directions_apart(update(rule_of(name), stack, losses=alike), stack.sum(1).double()) < 1e-3


@pytest.mark.parametrize("name", sorted(SUMS))
def test_equal_lengths_in_agreement_get_the_sum(name: str) -> None:
    stack = torch.nn.functional.normalize(gradients(5, 4).abs(), dim=2)
    weights = decide(rule_of(name), stack, losses=progress(1).expand(-1, 4))
    torch.testing.assert_close(weights, torch.ones(5, 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_draws_come_from_the_context_alone(name: str) -> None:
    """Ranks hold generators of one state, so they decide alike; nobody else's stream of numbers moves."""
    stack = gradients(4, 3)
    answers = []
    for other in (1, 2):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        answers.append(decide(rule_of(name), stack, seed=5))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*answers)
    if name in DRAWN:
        many = gradients(40, 3)
        assert not torch.equal(decide(rule_of(name), many, seed=5), decide(rule_of(name), many, seed=6))


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_rule_is_the_uninterrupted_one(name: str) -> None:
    steps = [gradients(3, 4, seed=seed) for seed in range(6)]
    steps[1][:, 2] = 0  # a task that is absent in some steps
    steps[4][:, 0] = 0
    losses = progress(4, 6)

    def go(rule: Rule, step: int) -> Tensor:
        stack = preconditioned(rule, steps[step], step)
        weights = decide(rule, stack, step=step, generator=generator, losses=losses[step : step + 1])
        return torch.cat([weights.flatten(), stack.flatten()])

    rule, generator = rule_of(name), torch.Generator().manual_seed(7)
    for step in range(3):
        go(rule, step)
    stage = preconditioner_of(rule)
    saved = {
        "rule": getattr(rule, "state_dict", dict)(),
        "stage": None if stage is None else stage.state_dict(),
        "generator": generator.get_state(),
    }
    file = io.BytesIO()
    torch.save(saved, file)
    expected = [go(rule, step) for step in range(3, 6)]

    file.seek(0)
    state, again, generator = torch.load(file, weights_only=True), rule_of(name), torch.Generator()
    generator.set_state(state["generator"])
    for loaded in (state, saved):  # from the file, and from memory: neither moved with the run
        again = rule_of(name)
        if hasattr(again, "load_state_dict"):
            again.load_state_dict(loaded["rule"])
        if loaded["stage"] is not None:
            preconditioner_of(again).load_state_dict(loaded["stage"])
        generator.set_state(state["generator"])
        found = [go(again, step) for step in range(3, 6)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
