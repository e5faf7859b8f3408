"""Law 3: `ortho` is the paper's four lines, block by block, with the same order of visits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ortholora.engine import Ortho, OrthoLora, RuleContext
from ortholora.engine.gram import unit_trace, weighted_sum
from ortholora.engine.rules.ortho import cached_pieces, project, visit_order

from . import _models as models
from . import _reference as reference
from ._asserts import assert_close, assert_gradients, gradients, oracle, run_step

#: float32 coefficients of nearly dependent gradients against the float64 transcription.
PROJECTED = 1e-4


def context(tasks: int, seed: int = 0) -> RuleContext:
    names = tuple(f"task{t}" for t in range(tasks))
    return RuleContext(names, torch.ones(tasks, dtype=torch.bool), 0, torch.Generator().manual_seed(seed))


def task_gradient_stack(blocks: int, tasks: int, numel: int, rank: int) -> Tensor:
    """Random task gradients of a given rank, so that tasks may be dependent."""
    return torch.randn(blocks, tasks, rank) @ torch.randn(blocks, rank, numel)


@given(
    blocks=st.integers(1, 4),
    tasks=st.integers(1, 6),
    rank=st.integers(1, 6),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-10, 1e-3, 1.0, 1e10]),
)
@settings(max_examples=100)
def test_ortho_equals_its_transcription(blocks: int, tasks: int, rank: int, seed: int, scale: float) -> None:
    stack = task_gradient_stack(blocks, tasks, 24, rank) * scale
    combination = Ortho()(unit_trace(stack @ stack.mT), context(tasks, seed))
    found = weighted_sum(combination.sum(1), stack)
    order = visit_order(blocks, tasks, torch.Generator().manual_seed(seed))
    size = stack.norm(dim=(1, 2)).max()
    for n in range(blocks):
        expected = reference.ortho(stack[n], order[n])
        # What cancels leaves rounding of the size of what went in, so that is the scale.
        assert float((found[n] - expected).norm() / size) < PROJECTED


@pytest.mark.parametrize("numbers", [1, 3 * 25, 2**18])
@pytest.mark.parametrize("masked", [False, True])
def test_pieces_of_the_blocks_make_the_whole(monkeypatch: pytest.MonkeyPatch, numbers: int, masked: bool) -> None:
    """Many blocks are worked on in pieces that stay in the cache; 7 of them in 7, in 3 and in one."""
    torch.manual_seed(0)
    stack = task_gradient_stack(7, 5, 12, 12)
    gram, order = stack @ stack.mT, visit_order(7, 5, torch.Generator().manual_seed(4))
    where = torch.rand(7, 5, 5) < 0.5 if masked else None
    monkeypatch.setattr("ortholora.engine.rules.ortho.CACHED_NUMBERS", numbers)
    assert len(cached_pieces(gram)) == {1: 7, 75: 3, 2**18: 1}[numbers]
    found = project(gram, order, where)
    for n in range(7):
        for i in range(5):
            c = torch.eye(5)[i].double()
            for j in order[n, i].tolist():
                dot = float(c @ gram[n, :, j].double())
                if dot < 0 and (where is None or where[n, i, j]):
                    c[j] -= dot / float(gram[n, j, j])
            assert_close(found[n, i].double(), c, PROJECTED)


@given(seed=st.integers(0, 50), tasks=st.integers(2, 6))
def test_visit_order_is_a_permutation_of_the_others(seed: int, tasks: int) -> None:
    order = visit_order(7, tasks, torch.Generator().manual_seed(seed))
    assert order.shape == (7, tasks, tasks - 1)
    for block in order:
        for i, visits in enumerate(block.tolist()):
            assert sorted([*visits, i]) == list(range(tasks))


def test_every_visit_order_occurs_about_equally_often() -> None:
    order = visit_order(6000, 4, torch.Generator().manual_seed(1))[:, 2]
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert int(counts.min()) > 850  # 1000 each are expected, σ = 29
    assert not torch.equal(order[0].expand_as(order), order)


def test_projection_uses_the_raw_gradient_of_the_other_task() -> None:
    """The example of which an implementation that projects on modified g_j gets the third row wrong."""
    g = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]])
    order = torch.tensor([[[1, 2], [0, 2], [0, 1]]])
    rows = project((g @ g.T)[None], order)[0] @ g
    assert_close(rows[0], torch.tensor([0.5, 0.5]) + 1.5 / 5 * torch.tensor([-1.0, -2.0]))
    # ⟨g_1, g_0⟩ = −1: h = (0, 1); ⟨h, g_2⟩ = −2: h = (0, 1) + 2/5 · (−1, −2)
    assert_close(rows[1], torch.tensor([-0.4, 0.2]))
    # ⟨g_2, g_0⟩ = −1: h = (0, −2); ⟨h, g_1⟩ = −2, ‖g_1‖² = 2: h = (0, −2) + (−1, 1)
    assert_close(rows[2], torch.tensor([-1.0, -1.0]))


@given(rank=st.integers(1, 5), blocks=st.integers(1, 5), seed=st.integers(0, 99))
def test_two_tasks_end_without_conflict(rank: int, blocks: int, seed: int) -> None:
    torch.manual_seed(seed)
    stack = task_gradient_stack(blocks, 2, 12, rank)
    h = Ortho()(stack @ stack.mT, context(2)) @ stack
    inner = torch.einsum("nif,njf->nij", h, stack)
    size = stack.norm(dim=2)
    assert bool((inner / (stack.norm(dim=(1, 2)) ** 2)[:, None, None] > -1e-5).all())
    conflict = (stack @ stack.mT)[:, 0, 1] < 0
    orthogonal = inner[:, 0, 1].abs() <= 1e-5 * size.prod(dim=1)
    assert bool(orthogonal[conflict].all())
    assert bool((h[~conflict] == stack[~conflict]).all())


@given(tasks=st.integers(2, 5), seed=st.integers(0, 99))
def test_the_last_visited_task_is_not_in_conflict(tasks: int, seed: int) -> None:
    torch.manual_seed(seed)
    stack = task_gradient_stack(6, tasks, 12, 8)
    gram = stack @ stack.mT
    order = visit_order(6, tasks, torch.Generator().manual_seed(seed))
    inner = project(gram, order) @ gram  # [N, i, k] = ⟨h_i, g_k⟩
    last = inner.gather(2, order[..., -1:])
    assert bool((last / gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] > -1e-5).all())


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_a_real_model_gets_the_transcription_of_its_blocks(block: Any, tasks: int) -> None:
    sample = models.bert(8, 4)
    parts = [(sample, torch.randint(tasks, (8,))), (sample, torch.arange(8) % tasks)]
    captured = oracle(sample.fork(), parts, tasks)
    ortho = OrthoLora(sample.model, [str(t) for t in range(tasks)], block=block, seed=11)
    run_step(ortho, sample.model, parts)
    stats = ortho.resolve()
    members = blocks_in_model_order(list(captured), block)
    assert len(stats.blocks) == len(members)
    order = visit_order(len(members), tasks, torch.Generator().manual_seed(11))
    expected = {}
    for names, visits in zip(members, order, strict=True):
        vector = reference.ortho(torch.cat([captured[n].flatten(1) for n in names], dim=1), visits)
        pieces = vector.split([captured[n][0].numel() for n in names])
        expected |= {n: piece.view_as(captured[n][0]) for n, piece in zip(names, pieces, strict=True)}
    assert int(stats.conflict_counts.sum()) > 0
    assert_gradients(sample.model, {n: expected[n] for n in captured}, PROJECTED)


def blocks_in_model_order(names: list[str], block: str) -> list[list[str]]:
    if block == "all":
        return [names]
    if block == "matrix":
        return [[name] for name in names]
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.split(".lora_")[0], []).append(name)
    return list(layers.values())


def test_the_next_step_draws_other_visits() -> None:
    sample = models.bert(8, 4)
    ortho = OrthoLora(sample.model, list("abcd"))
    parts = [(sample, torch.arange(8) % 4)]
    combinations = []
    for _ in range(2):
        run_step(ortho, sample.model, parts)
        combinations.append(ortho.resolve().combination)
        sample.model.zero_grad()
    assert not torch.equal(*combinations)


def test_torchjd_pcgrad_per_tensor_is_ortho_for_two_tasks() -> None:
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import backward, jac_to_grad

    sample = models.bert(8, 4)
    original, ids = sample.fork(), torch.tensor([0, 1, 0, 1, 1, 1, 0, 0])
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, [(sample, ids)])
    stats = ortho.resolve()
    assert int(stats.conflict_counts[0, 1]) > 0
    parameters = models.lora_parameters(original)
    losses = models.task_losses(models.token_losses(original, sample), ids, 2)
    backward(losses, inputs=parameters.values(), parallel_chunk_size=1)  # no vmap, which warns about SDPA
    for parameter in parameters.values():
        jac_to_grad([parameter], PCGrad())
    assert_gradients(sample.model, gradients(original), PROJECTED)


@given(seed=st.integers(0, 99), rank=st.integers(1, 4))
def test_torchjd_pcgrad_weighting_on_the_gram(seed: int, rank: int) -> None:
    from torchjd.aggregation import PCGradWeighting

    torch.manual_seed(seed)
    stack = task_gradient_stack(5, 2, 12, rank)
    found = Ortho()(stack @ stack.mT, context(2)).sum(1)
    for n in range(5):
        assert_close(found[n], PCGradWeighting()(stack[n] @ stack[n].T))
