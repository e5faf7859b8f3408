"""Law 6: rules do not see scale; zero gradients are legal; what is not finite stays visible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ortholora.engine import OrthoLora, StepStats

from . import _models as models
from ._asserts import assert_close, gradients, joint_step, run_step

IDS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1])
#: One task climbs where the others descend, so that even whole vectors conflict.
SIGN = torch.where(IDS == 2, -1.0, 1.0)[:, None]


def scaled_step(
    sample: models.Sample, factor: float, block: Any = "matrix", rule: Any = "ortho"
) -> tuple[Any, StepStats]:
    copy = models.Sample(sample.fork(), sample.inputs, sample.target)
    ortho = OrthoLora(copy.model, ["a", "b", "c"], rule=rule, block=block)
    with ortho.batch(IDS):
        ((models.token_losses(copy.model, copy) * SIGN).mean() * factor).backward()
    stats = ortho.resolve()
    return gradients(copy.model), stats


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
@pytest.mark.parametrize("factor", [1e-10, 1e-5, 1e5, 1e10])
def test_weights_do_not_depend_on_scale(factor: float, block: Any) -> None:
    sample = models.bert(8, 3)
    plain, stats = scaled_step(sample, 1.0, block)
    found, scaled = scaled_step(sample, factor, block)
    assert not torch.equal(stats.weights, torch.ones_like(stats.weights))
    assert_close(scaled.weights, stats.weights, 1e-4)
    assert_close(scaled.cosines, stats.cosines, 1e-4)
    assert_close(scaled.removed, stats.removed, 1e-3)
    for name, gradient in plain.items():
        assert_close(found[name].double() / factor, gradient, 1e-4, name)


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_a_rule_sees_the_same_gram_whatever_the_scale(factor: float) -> None:
    grams = []

    def rule(gram: torch.Tensor, context: Any) -> torch.Tensor:
        grams.append(gram)
        return torch.ones(gram.shape[:2])

    sample = models.bert(8, 3)
    for f in (1.0, factor):
        scaled_step(sample, f, rule=rule)
    assert_close(grams[1], grams[0], 1e-4)
    assert_close(grams[0].diagonal(dim1=1, dim2=2).sum(1), torch.ones(len(grams[0])))


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_first_step_of_a_real_adapter(block: Any) -> None:
    """B = 0, so that every gradient of A is zero."""
    torch.manual_seed(0)
    sample = models.bert(8, 3)
    base = models.bare(sample.model)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"])).train()
    sample = models.Sample(model, sample.inputs, sample.target)
    original = sample.fork()
    ortho = OrthoLora(model, ["a", "b", "c"], block=block)
    run_step(ortho, model, [(sample, IDS)])
    stats = ortho.resolve()
    joint_step(original, [(sample, IDS)])
    for name, gradient in gradients(model).items():
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any()) == ("lora_B" in name)
    assert bool(stats.weights.isfinite().all())
    assert bool(stats.cosines.isfinite().all())
    assert bool(stats.removed.isfinite().all())
    assert len(gradients(model)) == len(gradients(original)) == 8


@pytest.mark.parametrize("rule", ["ortho", "sum"])
def test_all_gradients_zero(rule: str) -> None:
    sample = models.bert(8, 3)
    found, stats = scaled_step(sample, 0.0, rule=rule)
    assert all(not bool(g.any()) for g in found.values())
    assert not bool(stats.gram.any())
    assert bool(stats.weights.isfinite().all())
    assert not bool(stats.removed.any())


def test_an_absent_task_changes_nothing_for_the_others() -> None:
    sample = models.bert(8, 3)
    results = []
    for names, ids in ((["a", "b"], IDS % 2), (["a", "absent", "b"], IDS % 2 * 2)):
        model = sample.fork()
        ortho = OrthoLora(model, names)
        with ortho.batch(ids):
            models.token_losses(model, sample).mean().backward()
        stats = ortho.resolve()
        results.append((gradients(model), stats))
    assert results[1][1].present.tolist() == [True, False, True]
    assert int(results[0][1].conflict_counts.sum()) > 0
    for name, gradient in results[0][0].items():
        assert_close(results[1][0][name], gradient, what=name)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("rule", ["ortho", "sum"])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one row", "all rows"])
def test_what_is_not_finite_reaches_grad(rule: str, rows: slice, value: float) -> None:
    """GradScaler skips a step by looking at `.grad`."""
    sample = models.bert(8, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=rule)
    factor = torch.ones(8, 1)
    factor[rows] = value
    with ortho.batch(IDS):
        (models.token_losses(sample.model, sample) * factor).mean().backward()
    ortho.resolve()
    (models.token_losses(original, sample) * factor).mean().backward()
    expected = gradients(original)
    for name, gradient in gradients(sample.model).items():
        assert not bool(expected[name].isfinite().all())
        assert not bool(gradient.isfinite().all()), name


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
@pytest.mark.parametrize("factor", [1e-30, 1e-22, 1e-17, 1e17, 1e20, 1e30])
def test_squares_beyond_float32_change_nothing(factor: float, block: Any) -> None:
    sample = models.bert(8, 3)
    plain, stats = scaled_step(sample, 1.0, block)
    found, scaled = scaled_step(sample, factor, block)
    assert_close(scaled.weights, stats.weights, 1e-4)
    assert_close(scaled.cosines, stats.cosines, 1e-4)
    assert_close(scaled.total_cosines, stats.total_cosines, 1e-2)
    for name, gradient in plain.items():
        assert_close(found[name].double() / factor, gradient, 1e-4, name)


@pytest.mark.parametrize("steps", [1, 4], ids=["checked", "not checked"])
def test_a_block_beyond_float32_beside_ordinary_ones(steps: int) -> None:
    """Only the one is rescaled, and only while it needs it."""
    sample = models.stack(8, 3, [5, 6, 7])
    last = sample.model.base_model.model.layers[1].lora_B["default"].weight
    grams = []
    for factor in (1.0, 1e-24):
        model = sample.fork()
        ortho = OrthoLora(model, ["a", "b", "c"], rule="ortho")
        for step in range(steps):
            model.zero_grad()
            with ortho.batch(IDS):
                (
                    models.token_losses(model, models.Sample(model, sample.inputs, sample.target)) * SIGN
                ).mean().backward()
            if step == steps - 1:
                ortho._groups[0].buffer.mul_(factor)
                assert ortho._groups[0].matrices[0].parameter.shape != last.shape
                for matrix in ortho._groups[0].matrices:
                    matrix.parameter.grad.mul_(factor)  # type: ignore[union-attr]
            stats = ortho.resolve()
        grams.append(stats)
    assert_close(grams[1].cosines, grams[0].cosines, 1e-4)
    assert torch.equal(grams[1].gram[-1], grams[0].gram[-1])


def test_a_skipped_step_can_be_discarded() -> None:
    sample = models.bert(8, 3)
    clean, _ = scaled_step(sample, 1.0)
    ortho = OrthoLora(sample.model, ["a", "b", "c"])
    with ortho.batch(IDS):
        (models.token_losses(sample.model, sample).mean() * float("nan")).backward()
    ortho.discard()
    sample.model.zero_grad()
    assert ortho.task_gradients() == {}
    with ortho.batch(IDS):
        (models.token_losses(sample.model, sample) * SIGN).mean().backward()
    ortho.resolve()
    for name, gradient in gradients(sample.model).items():
        assert_close(gradient, clean[name], what=name)
