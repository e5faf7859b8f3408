"""What only a GPU can show: no host synchronisation in capture and resolve, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ortholora.engine import OrthoLora

from . import _models as models
from ._asserts import FLOAT32, assert_same, gradients, oracle, run_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
IDS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])


def on_gpu(sample: models.Sample) -> models.Sample:
    inputs = {name: tensor.cuda() for name, tensor in sample.inputs.items()}
    return models.Sample(sample.model.cuda(), inputs, sample.target.cuda())


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
@pytest.mark.parametrize("ids", [IDS, models.equal_runs(4, 2), 0], ids=["scattered", "runs", "pure"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capture_and_resolve_do_not_wait_for_the_gpu(ids: Any, fused: bool, dtype: torch.dtype) -> None:
    sample = on_gpu(models.llama(8, 4))
    ortho = OrthoLora(sample.model, ["a", "b", "c", "d"], fused=fused, buffer_dtype=dtype)
    for _ in range(3):  # the first two steps compare captured sums with .grad, which waits; and allocations
        run_step(ortho, sample.model, [(sample, ids)])
        ortho.resolve()
        sample.model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):  # accumulation, too
            with ortho.batch(ids):
                models.token_losses(sample.model, sample).sum().backward()
        ortho.resolve()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rule", ["balanced", "gradnorm(start=1)", "famo(beta=1)", "db-mtl"])
def test_rules_decide_on_the_gpu_as_on_the_cpu(rule: str) -> None:
    """Losses come from either device, too."""
    sample = models.bert(8, 4)
    copy = models.Sample(sample.fork(), sample.inputs, sample.target)
    weights = [1.0, 2.0, 1.0]
    here = OrthoLora(copy.model, ["a", "b", "c"], rule=rule, weights=weights)
    there = on_gpu(sample)
    far = OrthoLora(there.model, ["a", "b", "c"], rule=rule, weights=weights)
    for losses in ([3.0, 1.0, 2.0], [2.0, 0.9, 0.1]):
        for ortho, of, device in ((here, copy, "cpu"), (far, there, "cuda")):
            run_step(ortho, of.model, [(of, IDS)])
            ortho.resolve(losses=(torch.tensor(losses, device=device), torch.ones(3)))
        assert_same({n: g.cpu() for n, g in gradients(there.model).items()}, gradients(copy.model), 1e-3)
        copy.model.zero_grad()
        there.model.zero_grad()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
def test_capture_on_the_gpu_is_exact(fused: bool) -> None:
    sample = on_gpu(models.bert(8, 4))
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b", "c"], fused=fused)
    run_step(ortho, sample.model, [(sample, IDS)])
    assert_same(ortho.task_gradients(), oracle(original, [(sample, IDS)], 3), 5 * FLOAT32)
