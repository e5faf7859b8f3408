"""Layers without a row-wise split: a mixed batch is refused, task-pure micro-batches are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import (
    assert_capture_is_exact,
    assert_gradients,
    assert_same,
    gradients,
    joint_step,
    oracle,
    run_step,
)

kinds = pytest.mark.parametrize("build", models.TASK_PURE.values(), ids=models.TASK_PURE.keys())


@kinds
def test_a_mixed_batch_is_refused_by_name(build: Any) -> None:
    sample = build(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"])
    message = r"lora_\w+\.default(?s:.*)cannot be split by row(?s:.*)2 tasks(?s:.*)ortho\.batch\(task_index\)"
    with pytest.raises(CaptureError, match=message), ortho.batch(torch.tensor([0, 1, 0, 1])):
        pass
    assert "task-pure micro-batches only" in ortho.summary()
    with ortho.batch(torch.tensor([1, 1, 1, 1])):  # pure by its ids
        models.token_losses(sample.model, sample).mean().backward()
    ortho.resolve()


@kinds
@pytest.mark.parametrize("tasks_of_parts", [[0], [0, 1, 2], [1, 1, 0, 2, 0], [2, 0, 2]], ids=str)
def test_task_pure_micro_batches_are_exact(build: Any, tasks_of_parts: list[int]) -> None:
    sample = build(6, 3)
    parts = [(sample.rows(slice(k, k + 2)), task) for k, task in enumerate(tasks_of_parts)]
    assert_capture_is_exact(sample, parts, 3)


@kinds
def test_every_trainable_lora_matrix_is_found(build: Any) -> None:
    sample = build(4, 3)
    ortho = OrthoLora(sample.model, ["a"])
    assert {m.name for m in ortho.matrices} == set(models.lora_parameters(sample.model))


@kinds
def test_sum_is_joint_training(build: Any) -> None:
    sample = build(6, 3)
    original = sample.fork()
    parts = [(sample.rows(slice(0, 3)), 0), (sample.rows(slice(3, 6)), 1), (sample, 1)]
    ortho = OrthoLora(sample.model, ["a", "b"], rule="sum")
    for _ in range(2):
        sample.model.zero_grad()
        run_step(ortho, sample.model, parts)
        ortho.resolve()
    joint_step(original, parts)
    assert_gradients(sample.model, gradients(original))


def test_pure_and_one_pass_matrices_share_a_step() -> None:
    sample = models.embedding(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"])
    pure = [m.name for m in ortho.matrices if m.task_pure]
    assert len(pure) == 2
    assert all(".words." in name for name in pure)
    assert "2 LoRA matrices in one pass" in ortho.summary()


def test_backward_outside_batch() -> None:
    sample = models.convolution(2, 3)
    ortho = OrthoLora(sample.model, ["a", "b"])
    with ortho.batch(0):
        models.token_losses(sample.model, sample).mean().backward()
    with pytest.raises(CaptureError, match="without task ids"):
        models.token_losses(sample.model, sample).mean().backward()


@pytest.mark.parametrize("other", ["task-pure", "one pass"])
def test_a_tied_parameter_is_counted_once(other: str) -> None:
    """Both owners see one parameter: two hooks, or a hook and the product, would each add the whole."""
    sample = models.stack(4, 3, [6, 6, 6], use_dora=other == "task-pure")
    first, second = (sample.model.base_model.model.layers[i] for i in (0, 1))
    second.lora_A["default"].weight = first.lora_A["default"].weight
    if other == "one pass":
        first.lora_A["default"].__class__ = type("Special", (torch.nn.Linear,), {})  # not a plain linear module
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"])
    parts = [(sample, 0), (sample, 1)]
    run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), oracle(original, parts, 2))
    ortho.resolve()


def test_a_parameter_replaced_between_steps_is_captured_anew() -> None:
    sample = models.embedding(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"])
    parts = [(sample, 0), (sample, 1)]
    run_step(ortho, sample.model, parts)
    ortho.resolve()
    sample.model.zero_grad()
    matrices = sample.model.base_model.model.words.lora_embedding_A
    old = matrices["default"]
    matrices["default"] = torch.nn.Parameter(old.detach().clone())
    run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), oracle(original, parts, 2))
    ortho.resolve()
    assert not old._backward_hooks  # and the old one is let go


def test_adalora_is_task_pure() -> None:
    sample = models.stack(4, 3, [5, 6])
    base = models.bare(sample.model)
    model = get_peft_model(base, AdaLoraConfig(target_modules=["layers.0"], total_step=9, init_r=3)).train()
    models.draw_lora(model)
    torch.nn.init.normal_(model.base_model.model.layers[0].lora_E["default"])  # 0 at first, and all gradients with it
    sample = models.Sample(model, sample.inputs, sample.target)
    assert_capture_is_exact(sample, [(sample, 0), (sample, 1)], 2)
