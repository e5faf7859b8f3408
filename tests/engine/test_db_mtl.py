"""`db-mtl` through the engine against a loop over Algorithm 1, and what its memory is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora
from ortholora.engine.rules import DbMtl
from ortholora.errors import RuleError

from . import _models as models
from ._asserts import assert_gradients, gradients, oracle, run_step

STEPS = ([0, 0, 1, 2, 2, 2], [2, 0, 1, 2, 2, 1], [1, 0, 2, 0, 1, 2])


def losses_of(sample: models.Sample, model: Any, ids: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The very losses whose gradients `run_step` takes: the log's gradient is theirs divided by them."""
    with torch.no_grad():
        parts = models.task_losses(models.token_losses(model, sample), ids, len(scales))
    return torch.stack(parts) * scales, torch.ones(len(scales))


def train(scales: Tensor, beta: float = 0.8) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Some steps: what the engine wrote, and Algorithm 1 matrix by matrix (bias-corrected)."""
    torch.manual_seed(3)
    sample = models.bert(6, 3)
    apart, ortho = sample.fork(), OrthoLora(sample.model, list("abc"), rule=DbMtl(beta))
    buffers: dict[str, Tensor] = {}
    results = []
    for step, of_row in enumerate(STEPS, start=1):
        ids = torch.tensor(of_row)
        sums, counts = losses_of(sample, apart, ids, scales)
        raw = oracle(apart, [(sample, ids)], 3)
        expected = {}
        for name, g in raw.items():
            of_log = torch.stack([scales[t] * g[t] / sums[t] for t in range(3)])
            before = buffers.get(name, torch.zeros_like(of_log))
            buffers[name] = beta * before + (1 - beta) * of_log
            lengths = [float(buffers[name][t].norm()) for t in range(3)]
            alpha = max(lengths) / (1 - beta**step)
            expected[name] = sum((alpha * buffers[name][t] / max(lengths[t], 1e-30) for t in range(3)), 0 * g[0])
        with ortho.batch(ids):
            parts = models.task_losses(models.token_losses(sample.model, sample), ids, 3)
            (torch.stack(parts) * scales).sum().backward()
        ortho.resolve(losses=(sums, counts))
        results.append((gradients(sample.model), expected))
        with torch.no_grad():
            pairs = zip(
                models.lora_parameters(apart).values(), models.lora_parameters(sample.model).items(), strict=True
            )
            for other, (_, parameter) in pairs:
                assert parameter.grad is not None
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
                other.copy_(parameter)
    return results


@pytest.mark.parametrize("scales", [[1.0, 1.0, 1.0], [1e-3, 1.0, 1e3]])
def test_equals_its_transcription(scales: list[float]) -> None:
    for found, expected in train(torch.tensor(scales)):
        assert found.keys() == expected.keys()
        for name, g in expected.items():
            assert float((found[name] - g).norm()) <= 1e-3 * float(g.norm()), name


def test_the_size_of_a_loss_changes_nothing() -> None:
    """Not even lengths: logarithms have no units."""
    for (found, _), (expected, _) in zip(train(torch.tensor([1e-3, 1.0, 1e3])), train(torch.ones(3)), strict=True):
        for name, g in expected.items():
            assert float((found[name] - g).norm()) <= 1e-3 * float(g.norm()), name


def test_a_single_task_is_plain_lora() -> None:
    sample = models.bert(4, 3)
    expected = oracle(sample.fork(), [(sample, torch.zeros(4, dtype=torch.long))], 1)
    ortho = OrthoLora(sample.model, ["a"], rule="db-mtl")
    run_step(ortho, sample.model, [(sample, torch.zeros(4, dtype=torch.long))])
    ortho.resolve(losses=(torch.tensor([7.0]), torch.tensor([2])))
    assert_gradients(sample.model, {name: g[0] for name, g in expected.items()})


def test_an_absent_task_takes_no_part_and_keeps_its_mean() -> None:
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"], rule="db-mtl")
    means = []
    for ids in ([0, 1, 0, 1], [0, 0, 0, 0]):
        run_step(ortho, sample.model, [(sample, torch.tensor(ids))])
        ortho.resolve(losses=(torch.ones(2), torch.ones(2)))
        means.append(ortho._means.state_dict()["sums"])
        sample.model.zero_grad()
    before, after = means[:2]
    assert all(torch.equal(b[:, 1], a[:, 1]) for b, a in zip(before, after, strict=True))
    assert not all(torch.equal(b[:, 0], a[:, 0]) for b, a in zip(before, after, strict=True))


def test_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"decay in \(0, 1\)"):
        DbMtl(1.0)
    with pytest.raises(ValueError, match=r"should be for DbMtl\(beta=0\.5\)\. Found one for beta=0\.9"):
        DbMtl(0.5).load_state_dict(DbMtl().state_dict())
    sample = models.bert(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"], rule="db-mtl")
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 1, 0, 1]))])
    with pytest.raises(RuleError, match=r"'b' cannot be used(?s:.*)`db-mtl` takes logarithms"):
        ortho.resolve(losses=(torch.tensor([1.0, -2.0]), torch.ones(2)))
    assert ortho._means.state_dict()["sums"] is None  # the means did not move
