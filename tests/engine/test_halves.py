"""The two halves of a step: captured in one backward, exact, and the same however the step is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora, RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.halves import Halves
from ortholora.engine.rules.noise_free import half_agreement, noise_free_gram, signal_share

from . import _models as models
from ._asserts import assert_close, assert_gradients, assert_same, gradients, oracle, run_step
from ._rules import Halved, Means

TASKS = ["a", "b", "c"]


def grams_of(model: nn.Module, parts: list[tuple[models.Sample, Tensor]], halves: list[Tensor]) -> Tensor:
    """Gram `[N, 2T, 2T]` of the halves by `autograd.grad`, each half of a task as a task of its own."""
    apart = [(sample, ids + len(TASKS) * half) for (sample, ids), half in zip(parts, halves, strict=True)]
    stacks = [g.flatten(1) for g in oracle(model, apart, 2 * len(TASKS)).values()]
    return unit_trace(torch.stack([stack @ stack.T for stack in stacks]))


def in_turn(ids: list[int]) -> Tensor:
    """0, 1, 0, … for the rows of every task, one row at a time."""
    seen, halves = [0] * len(TASKS), []
    for task in ids:
        halves.append(seen[task] % 2)
        seen[task] += 1
    return torch.tensor(halves)


@pytest.mark.parametrize("cuts", [(8,), (1,) * 8, (3, 1, 4)], ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
def test_rows_in_turn_however_the_step_is_cut(cuts: tuple[int, ...], fused: bool) -> None:
    sample, ids = models.bert(8, 3), [0, 1, 0, 2, 2, 0, 1, 2]
    rows = torch.arange(8).split(list(cuts))
    parts = [(sample.rows(r), torch.tensor(ids)[r]) for r in rows]
    original, rule = sample.fork(), Halved()
    ortho = OrthoLora(sample.model, TASKS, rule, fused=fused)
    run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), oracle(original, parts, 3))
    stats = ortho.resolve()
    assert_close(rule.grams[0], grams_of(original, parts, [in_turn(ids)[r] for r in rows]), 1e-4)
    assert rule.units[0].tolist() == [[2, 1, 2], [1, 1, 1]]
    # To everybody else it is the step of a rule without halves.
    run_step(joint := OrthoLora(original, TASKS, "sum"), original, parts)
    assert_close(stats.gram, joint.resolve().gram, 1e-4)
    assert_gradients(sample.model, gradients(original))


def test_halves_may_be_given() -> None:
    sample, ids = models.bert(6, 3), torch.tensor([0, 1, 0, 2, 2, 1])
    given, rule = torch.tensor([1, 1, 0, 0, 0, 0]), Halved()
    expected = grams_of(sample.fork(), [(sample, ids)], [given])
    ortho = OrthoLora(sample.model, TASKS, rule)
    with ortho.batch(ids, given):
        models.token_losses(sample.model, sample).sum().backward()
    with pytest.warns(UserWarning, match="'c' had less than two"):
        ortho.resolve()
    assert_close(rule.grams[0], expected, 1e-4)
    assert rule.units[0].tolist() == [[1, 1, 2], [1, 1, 0]]
    for wrong in ([0, 1], [0, 1, 2, 0, 1, 1]):
        expected = r"halves should be 0 or 1 for each of the task_ids, of shape \[6\]"
        with pytest.raises(ValueError, match=expected), ortho.batch(ids, wrong):
            pass


def test_packed_documents() -> None:
    sample, document = models.packed_llama([3, 2, 4, 2])
    ids, rule = torch.tensor([0, 1, 0, 1])[document][None], Halved()
    expected = grams_of(sample.fork(), [(sample, ids)], [torch.tensor([0, 0, 1, 1])[document][None]])
    ortho = OrthoLora(sample.model, TASKS, rule)
    run_step(ortho, sample.model, [(sample, ids)])
    ortho.resolve()
    assert_close(rule.grams[0], expected, 1e-4)


def test_units_of_tokens_are_runs_within_a_row() -> None:
    """Not tokens, which are not independent; and a row's first text is another one than the last row's."""
    halves = Halves(TASKS, whole_batches=False)
    ids = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])
    assert halves.split(ids, None).tolist() == [[0, 0, 1, 1, 3], [0, 0, 0, 4, 4]]
    assert halves.take_step(torch.tensor([True, True, False]), torch.device("cpu")).tolist() == [[2, 1, 0], [1, 1, 0]]


def test_a_matrix_that_cannot_be_split_by_row_takes_whole_micro_batches() -> None:
    sample, rule = models.embedding(4, 3), Halved()
    first, second = sample.rows([0]), sample.rows([1, 3])
    parts = [(first, 0), (second, torch.tensor([1, 1])), (sample.rows([2]), 0), (second, torch.tensor([1, 1]))]
    apart = [(part, virtual) for (part, _), virtual in zip(parts, (0, 1, 3, 4), strict=True)]
    stacks = [g.flatten(1) for g in oracle(sample.fork(), apart, 6).values()]
    ortho = OrthoLora(sample.model, TASKS, rule)
    run_step(ortho, sample.model, parts)
    ortho.resolve()
    for found, stack in zip(rule.grams[0], stacks, strict=True):
        assert_close(found, unit_trace((stack @ stack.T)[None])[0], 1e-4)


def test_a_task_with_one_row_is_told_once() -> None:
    sample, ids = models.bert(3, 3), torch.tensor([0, 1, 1])
    ortho = OrthoLora(sample.model, TASKS, Halved())
    for step in range(2):
        run_step(ortho, sample.model, [(sample, ids)])
        if step == 0:
            with pytest.warns(UserWarning, match=r"'a' had less than two(?s:.*)two rows a step"):
                ortho.resolve()
        else:
            ortho.resolve()  # a warning is an error here
        sample.model.zero_grad()


def test_the_next_step_begins_anew() -> None:
    found, halves = [], Halves(TASKS, whole_batches=False)
    for _ in range(2):
        found.append([halves.split(0, None), halves.split([0, 1, 0], None)])
        halves.clear()
    assert found[0][0].tolist() == [0]
    assert found[0][1].tolist() == [3, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_memory_is_twice_that_of_the_task_gradients() -> None:
    sample = models.bert(4, 3)
    sizes = {}
    for rule in ("sum", Halved()):
        model = sample.fork()
        ortho = OrthoLora(model, TASKS, rule)
        run_step(ortho, model, [(sample, torch.tensor([0, 1, 0, 1]))])
        sizes[str(type(rule))] = sum(group.buffer.numel() for group in ortho._groups)
        ortho.detach()
    assert sizes[str(Halved)] == 2 * sizes[str(str)]


def test_a_rule_asks_for_one_of_halves_and_memory() -> None:
    rule = Means()
    rule.halves = True
    with pytest.raises(ValueError, match="one of `halves`, `memory` and `precondition`"):
        OrthoLora(models.stack(2, 2, [3, 4]).model, TASKS, rule)


def noisy(blocks: int, rows: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Signals `[2, 16]` of squared length 1 and 4, and many steps' halves and wholes of their noisy means."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.nn.functional.normalize(torch.randn(2, 16, generator=generator)) * torch.tensor([[1.0], [2.0]])
    of_rows = signal[:, None] + noise * torch.randn(blocks, 2, rows, 16, generator=generator)
    a = of_rows[:, :, : (rows + 1) // 2].sum(2) / rows
    b = of_rows[:, :, (rows + 1) // 2 :].sum(2) / rows
    return signal, torch.cat([a, b], 1), a + b


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_the_noise_free_gram_is_unbiased(rows: int) -> None:
    signal, halves, mean = noisy(20000, rows, noise=1.0)
    units = torch.tensor([[(rows + 1) // 2] * 2, [rows // 2] * 2]).float()
    context = RuleContext(("a", "b"), torch.ones(2, dtype=torch.bool), 0, torch.Generator(), None, units)
    gram = halves @ halves.mT
    expected = signal @ signal.T
    torch.testing.assert_close(noise_free_gram(gram, context).mean(0), expected, rtol=0.02, atol=0.05)
    inflated = (mean @ mean.mT).mean(0).diagonal()
    torch.testing.assert_close(inflated, expected.diagonal() + 16 / rows, rtol=0.05, atol=0)  # what it is free of
    agreement, known = half_agreement(gram, context)
    assert bool(known.all())
    share = signal_share(agreement.mean(0, keepdim=True), context)[0]
    # A mean of ratios is not the ratio of the means; with these shares they are close.
    torch.testing.assert_close(share, expected.diagonal() / inflated, rtol=0.2, atol=0.05)


def test_what_has_one_half_only_is_not_known() -> None:
    gram = torch.eye(4)[None] + 0.5
    units = torch.tensor([[2.0, 1.0], [2.0, 0.0]])
    context = RuleContext(("a", "b"), torch.ones(2, dtype=torch.bool), 0, torch.Generator(), None, units)
    assert noise_free_gram(gram, context)[0].diagonal().tolist() == [2.0, 4.0]
    agreement, known = half_agreement(gram, context)
    assert known[0].tolist() == [True, False]
    assert agreement[0].tolist() == pytest.approx([1 / 3, 1.0])
    assert signal_share(agreement, context)[0].tolist() == pytest.approx([0.5, 1.0])
    assert float(signal_share(-agreement, context)[0, 0]) == 0
