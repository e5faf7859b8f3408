"""What is refused at once, by name: wrong task ids, and models that cannot be captured (law 8)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_gradients, gradients

IDS = torch.tensor([0, 1, 0, 1])


@pytest.fixture
def sample() -> models.Sample:
    return models.stack(4, 3, [5, 6, 4])


def step(ortho: OrthoLora, sample: models.Sample, extra: Callable[[], Any] | None = None) -> None:
    with ortho.batch(IDS):
        loss = models.token_losses(sample.model, sample).mean()
        (loss if extra is None else loss + extra()).backward()


# ---- wrong task ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0, 2, 0, 0]), r"in \[0, 2\).*Found 2"),
        (torch.tensor([0, -1, 0, 0]), r"in \[0, 2\).*Found -1"),
        (-100, r"Found -100.*padding"),
        (torch.tensor([0.0, 1.0]), r"integers. Found dtype torch.float32; pass ids.long\(\)"),
        (torch.tensor([True, False]), r"integers. Found dtype torch.bool"),
        (True, "integers"),
        (torch.zeros(0, dtype=torch.long), "not empty"),
        (torch.zeros(2, 2, 2, dtype=torch.long), r"Found shape \[2, 2, 2\]"),
    ],
)
def test_wrong_ids(sample: models.Sample, ids: Any, message: str) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    with pytest.raises(ValueError, match=message), ortho.batch(ids):
        pass
    step(ortho, sample)  # and the batch is not left open
    assert len(ortho.task_gradients()) == 4


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 0, 1, 0]),
        torch.tensor([[0, 1, 0], [0, 1, 0]]),
        torch.tensor([[0, 1, 0, 1]]),
        torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0]]),
    ],
    ids=lambda t: str(list(t.shape)),
)
def test_ids_of_another_shape_than_the_input(sample: models.Sample, ids: torch.Tensor) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    message = r"input of shape \[4, 3, \d\](?s:.*)token-level ids(?s:.*)task-pure"
    with ortho.batch(ids), pytest.raises(CaptureError, match=message):
        models.token_losses(sample.model, sample).mean().backward()


def test_flattened_tokens_with_row_ids(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    flat = sample.inputs["x"].flatten(0, 1)  # [12, 5], as a mixture of experts sees tokens
    with ortho.batch(IDS), pytest.raises(CaptureError, match=r"match task ids of shape \[4\](?s:.*)\[12, \d\]"):
        sample.model(flat).square().mean().backward()
    ortho.discard()
    sample.model.zero_grad()
    with ortho.batch(IDS[:, None].expand(4, 3)):  # the way out
        sample.model(flat).square().mean().backward()
    ortho.resolve()
    assert len(gradients(sample.model)) == 4


# ---- models that are refused -------------------------------------------------------------------------


def test_a_model_without_lora() -> None:
    with pytest.raises(CaptureError, match=r"no trainable LoRA matrix(?s:.*)without LoRA layers(?s:.*)get_peft_model"):
        OrthoLora(models.Stack([3, 4]), ["a"])


def test_a_frozen_adapter(sample: models.Sample) -> None:
    sample.model.requires_grad_(False)
    with pytest.raises(CaptureError, match=r"4 LoRA matrices, all frozen(?s:.*)is_trainable=True"):
        OrthoLora(sample.model, ["a"])


def test_a_merged_adapter(sample: models.Sample) -> None:
    sample.model.merge_adapter()
    with pytest.raises(CaptureError, match=r"layers\.0 is merged(?s:.*)unmerge_adapter"):
        OrthoLora(sample.model, ["a"])
    sample.model.unmerge_adapter()
    OrthoLora(sample.model, ["a"])


def test_data_parallel(sample: models.Sample) -> None:
    with pytest.raises(CaptureError, match=r"DataParallel is not supported(?s:.*)DistributedDataParallel"):
        OrthoLora(nn.DataParallel(sample.model), ["a"])


@pytest.mark.parametrize("name", ["DeepSpeedEngine", "FullyShardedDataParallel"])
def test_wrappers_that_own_the_gradients(sample: models.Sample, name: str) -> None:
    wrapper = type(name, (nn.Sequential,), {})(sample.model)
    with pytest.raises(CaptureError, match=f"{name} is not supported"):
        OrthoLora(wrapper, ["a"])


def test_attaching_twice_is_refused_and_the_first_still_works(sample: models.Sample) -> None:
    original = copy.deepcopy(sample.model)
    first = OrthoLora(sample.model, ["a", "b"], rule="sum")
    with pytest.raises(CaptureError, match=r"cannot be captured(?s:.*)detach\(\)"):
        OrthoLora(sample.model, ["a", "b"])
    step(first, sample)
    first.resolve()
    models.token_losses(original, sample).mean().backward()
    assert_gradients(sample.model, gradients(original))
    first.detach()
    OrthoLora(sample.model, ["a", "b"])


@pytest.mark.parametrize("tasks", [[], ["a", "a"], "ab", ()])
def test_task_names(sample: models.Sample, tasks: Any) -> None:
    with pytest.raises(ValueError, match="different names"):
        OrthoLora(sample.model, tasks)


def test_an_unknown_block(sample: models.Sample) -> None:
    with pytest.raises(ValueError, match=r"'matrix', 'layer' or 'all'\. Found 'tensor'"):
        OrthoLora(sample.model, ["a"], block="tensor")  # type: ignore[arg-type]
