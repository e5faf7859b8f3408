"""Law 7: the ordinary gradient flows during backward; only resolve overwrites it, in place."""

from __future__ import annotations

import pytest
import torch

from ortholora.engine import OrthoLora

from . import _models as models
from ._asserts import BFLOAT16, assert_gradients, gradients, joint_step, run_step

IDS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("build", [models.bert, models.llama, models.gpt2], ids=["bert", "llama", "gpt2"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_before_resolve_grad_is_joint(build: object, tasks: int) -> None:
    sample = build(6, 3)  # type: ignore[operator]
    original = sample.fork()
    parts = [(sample, IDS % tasks), (sample.rows(slice(0, 4)), IDS[:4] % tasks), (sample, 0)]
    ortho = OrthoLora(sample.model, [str(t) for t in range(tasks)])
    run_step(ortho, sample.model, parts)
    joint_step(original, parts)
    assert_gradients(sample.model, gradients(original))


def test_before_resolve_grad_of_a_layer_used_twice_is_joint() -> None:
    for tasks in (1, 2):
        sample = models.stack(6, 2, [4, 5], repeat=True)
        original = sample.fork()
        ortho = OrthoLora(sample.model, [str(t) for t in range(tasks)])
        run_step(ortho, sample.model, [(sample, IDS % tasks)])
        joint_step(original, [(sample, IDS % tasks)])
        assert_gradients(sample.model, gradients(original))


@pytest.mark.parametrize("tasks", [1, 3])
def test_captured_gradients_share_no_memory_with_grad(tasks: int) -> None:
    sample = models.bert(6, 3)
    ortho = OrthoLora(sample.model, [str(t) for t in range(tasks)])
    run_step(ortho, sample.model, [(sample, IDS % tasks)])
    before = {n: t.clone() for n, t in ortho.task_gradients().items()}
    for parameter in models.lora_parameters(sample.model).values():
        assert parameter.grad is not None
        parameter.grad.zero_()
    assert all(torch.equal(t, before[n]) for n, t in ortho.task_gradients().items())
    assert any(bool(t.any()) for t in before.values())


def test_resolve_copies_into_the_grad_that_exists() -> None:
    """DDP's buckets and fused optimizers hold on to the tensor."""
    sample = models.bert(6, 3)
    ortho = OrthoLora(sample.model, ["a", "b", "c"])
    run_step(ortho, sample.model, [(sample, IDS)])
    before = {n: (p.grad, p.grad.clone()) for n, p in models.lora_parameters(sample.model).items()}
    ortho.resolve()
    changed = 0
    for name, parameter in models.lora_parameters(sample.model).items():
        assert parameter.grad is before[name][0]
        changed += not torch.equal(parameter.grad, before[name][1])
    assert changed > 0


def test_resolve_sets_a_grad_that_was_taken_away() -> None:
    sample = models.bert(6, 3)
    other = sample.fork()
    for model, keep in ((sample.model, True), (other, False)):
        ortho = OrthoLora(model, ["a", "b", "c"])
        run_step(ortho, model, [(sample, IDS)])
        if not keep:
            model.zero_grad(set_to_none=True)
        ortho.resolve()
    assert_gradients(other, gradients(sample.model), 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_grad_has_the_dtype_of_its_parameter(dtype: torch.dtype) -> None:
    sample = models.bert(6, 3)
    sample.model.to(dtype)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule="sum")
    run_step(ortho, sample.model, [(sample, IDS)])
    joint_step(original, [(sample, IDS)])
    assert_gradients(sample.model, gradients(original), 2 * BFLOAT16)
    ortho.resolve()
    assert_gradients(sample.model, gradients(original), 2 * BFLOAT16)
    assert all(p.grad.dtype == dtype for p in models.lora_parameters(sample.model).values())


def test_resolve_inside_autocast_is_resolve() -> None:
    sample = models.bert(6, 3)
    other = sample.fork()
    for model, enabled in ((sample.model, False), (other, True)):
        ortho = OrthoLora(model, ["a", "b", "c"])
        run_step(ortho, model, [(sample, IDS)])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            stats = ortho.resolve()
        assert stats.gram.dtype == stats.weights.dtype == torch.float32
    assert_gradients(other, gradients(sample.model), 0.0)


def test_grad_scaler_skips_what_overflowed_and_keeps_the_rest() -> None:
    sample = models.bert(6, 3)
    plain = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b", "c"])
    plain_ortho = OrthoLora(plain, ["a", "b", "c"])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=0.1)
    start = [p.detach().clone() for p in models.lora_parameters(sample.model).values()]
    for factor in (float("inf"), 1.0):
        with ortho.batch(IDS):
            scaler.scale(models.token_losses(sample.model, sample).mean() * factor).backward()
        ortho.resolve()
        scaler.step(optimizer)
        scaler.update()
        if factor != 1.0:
            now = models.lora_parameters(sample.model).values()
            assert all(torch.equal(a, b) for a, b in zip(start, now, strict=True))
            optimizer.zero_grad()
    # The skipped step drew visits, too.
    with plain_ortho.batch(IDS):
        (models.token_losses(plain, sample).mean() * float("inf")).backward()
    plain_ortho.resolve()
    plain.zero_grad()
    with plain_ortho.batch(IDS):
        models.token_losses(plain, sample).mean().backward()
    plain_ortho.resolve()
    assert_gradients(sample.model, gradients(plain), 1e-4)
