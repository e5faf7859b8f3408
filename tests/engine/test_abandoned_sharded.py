"""A step that was given up under FSDP2: noticed by the parts that the optimizer holds, or refused."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same, oracle, run_step
from .test_abandoned import IDS, Failing, OutOfMemoryError, fail, fragile, unchecked, zeroings


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """FSDP2 wants a group of processes; one will do, because each rank looks at its own part alone."""
    store = f"file://{tmp_path_factory.mktemp('group')}/init"
    dist.init_process_group("gloo", store, rank=0, world_size=1, timeout=datetime.timedelta(seconds=30))
    yield
    dist.destroy_process_group()


def sharded(sample: models.Sample, *, layers: tuple[str, ...] = (), gathered: bool = False) -> Any:
    model: Any = sample.model
    for name, module in list(model.named_modules()):
        if layers and name.endswith(layers):
            fully_shard(module)
    fully_shard(model)
    if gathered:
        model.set_reshard_after_backward(False)
    return model


def bert(**options: Any) -> tuple[models.Sample, dict[str, torch.Tensor]]:
    sample = models.bert(4, 3)
    expected = oracle(sample.fork(), [(sample, IDS)], 3)
    sharded(sample, layers=("layer.0", "layer.1"), **options)
    return sample, expected


@zeroings
@pytest.mark.parametrize("gathered", [False, True], ids=["resharded", "never resharded"])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_step_that_was_skipped(
    to_none: bool, gathered: bool, steps_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, expected = bert(gathered=gathered)
    optimizer = torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=0.0)
    ortho = unchecked(OrthoLora(sample.model, ["a", "b", "c"]), monkeypatch)
    for _ in range(steps_before):
        run_step(ortho, sample.model, [(sample, IDS)])
        ortho.resolve()
        optimizer.zero_grad(set_to_none=to_none)
    run_step(ortho, sample.model, [(sample, IDS), (sample, 2)])
    optimizer.zero_grad(set_to_none=to_none)
    with pytest.warns(UserWarning, match="zeroed without resolve"):
        run_step(ortho, sample.model, [(sample, IDS)])
    assert_same(ortho.task_gradients(), expected)
    assert ortho.resolve().present.tolist() == [True, True, False]


@pytest.mark.parametrize("synchronised", [True, False])
def test_micro_batches_of_one_step_are_no_skipped_step(synchronised: bool) -> None:
    sample, _ = bert()
    model: Any = sample.model
    ortho = OrthoLora(model, ["a", "b", "c"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for last in (False, False, True):
                model.set_requires_gradient_sync(last or synchronised)
                run_step(ortho, model, [(sample, IDS)])
            ortho.resolve()
            model.zero_grad()


@zeroings
@pytest.mark.parametrize("go_on", [True, False], ids=["another micro-batch", "at once"])
def test_a_backward_that_failed(to_none: bool, go_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of its gradients lie inside FSDP2, and zeroing does not reach them."""
    sample = fragile()
    sharded(sample, layers=("first", "second"))
    ortho = unchecked(OrthoLora(sample.model, ["a", "b"]), monkeypatch)
    run_step(ortho, sample.model, [(sample, IDS)])
    fail(ortho, sample)
    if go_on:
        sample.model.zero_grad(set_to_none=to_none)
        with pytest.warns(UserWarning, match="zeroed without resolve"):
            run_step(ortho, sample.model, [(sample, IDS)])
        return
    with pytest.raises(CaptureError, match=r"(?s:.*)backward of this step did not come to its end(?s:.*)discard"):
        ortho.resolve()


def test_an_exception_before_the_first_reduction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = fragile()
    expected = oracle(sample.fork(), [(sample, IDS)], 2)
    model = sharded(sample)
    ortho = unchecked(OrthoLora(model, ["a", "b"]), monkeypatch)
    hook = model.register_forward_hook(failing := Failing())
    failing.on = False
    model.set_requires_gradient_sync(False)
    run_step(ortho, model, [(sample, IDS)])
    failing.on = True
    with pytest.raises(OutOfMemoryError):
        run_step(ortho, model, [(sample, IDS)])
    hook.remove()
    model.zero_grad()
    model.set_requires_gradient_sync(True)
    run_step(ortho, model, [(sample, IDS)])
    with pytest.raises(CaptureError, match=r"zeroing does not reach them(?s:.*)ortho\.discard\(\)"):
        ortho.resolve()
    ortho.discard()
    model.zero_grad()
    run_step(ortho, model, [(sample, IDS)])
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


def test_gradients_zeroed_inside_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, _ = bert()
    ortho = unchecked(OrthoLora(sample.model, ["a", "b"]), monkeypatch)

    def step(model: nn.Module) -> None:
        with ortho.batch(IDS):
            model.zero_grad()
            models.token_losses(model, sample).mean().backward()

    step(sample.model)
    step(sample.model)
    with pytest.raises(CaptureError, match=r"zeroed inside(?s:.*)before the batch"):
        ortho.resolve()
