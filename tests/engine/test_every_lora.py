"""Every kind of LoRA: announced before training, captured exactly, trained, saved, and read by plain PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging import version
from peft import PeftModel
from torch import Tensor, nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_capture_is_exact, assert_close, joint_step, run_step
from ._kinds import KINDS, ONE_PASS, ROWS, TASK_PURE, Case, Kind

pytestmark = pytest.mark.skipif(
    version.parse(peft.__version__) < version.parse("0.21"), reason="docs/every-lora.md is about PEFT 0.21 and later"
)
TASKS = ["a", "b", "c"]

#: PEFT's own words while saving: embeddings go along; the second is a false alarm (a bias is 1-D).
PEFT_WARNS = ("ignore:Setting `save_embedding_layers`:UserWarning", "ignore:.*lora_B.bias:UserWarning")

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def parts_of(case: Case, kind: Kind) -> list[tuple[models.Sample, Any]]:
    """The micro-batches of one step: mixed ones where one pass is exact, else one task each."""
    if kind.capture == ONE_PASS:
        return [(case.sample, torch.tensor([0, 2, 1, 0, 1, 0])), (case.sample.rows(slice(0, 2)), torch.tensor([2, 1]))]
    return [(case.sample.rows(slice(k, k + 2)), task) for k, task in ((0, 1), (2, 0), (4, 2), (1, 1))]


def other_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains and is neither A nor B."""
    matrices = models.lora_parameters(model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad and name not in matrices}


def outputs(model: nn.Module, sample: models.Sample) -> Tensor:
    """What the model says to the batch, without dropout."""
    with torch.no_grad():
        found = model.eval()(**sample.inputs)
    return found if isinstance(found, Tensor) else found[0]


def train(case: Case, kind: Kind, steps: int = 3) -> None:
    """Train some steps with the rule `ortho` and let go of the model."""
    model = case.sample.model
    ortho = OrthoLora(model, TASKS, seed=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        run_step(ortho, model, parts_of(case, kind))
        ortho.resolve()
        optimizer.step()
        optimizer.zero_grad()
    ortho.detach()


@every_kind
def test_the_class_is_said_before_training(kind: Kind) -> None:
    case = kind.build()
    ortho = OrthoLora(case.sample.model, TASKS)
    summary = ortho.summary()
    assert {m.name for m in ortho.matrices if m.task_pure is None} != set() or kind.capture == TASK_PURE
    assert ("task-pure micro-batches only" in summary) == (kind.capture == TASK_PURE)
    if kind.capture == ONE_PASS:
        assert (", 0 by the general path" in summary) == kind.fused
        assert ("0 layers fused" in summary) == (not kind.fused)
    else:
        with pytest.raises(CaptureError, match="cannot be split by row"), ortho.batch([0, 1]):
            pass
    names = list(other_parameters(case.sample.model))
    assert bool(names) == bool(kind.joint)
    assert all(any(mark in name for mark in kind.joint) for name in names)
    assert ("plain joint gradient" in summary) == bool(names)
    assert not names or f"plain joint gradient: {names[0]}" in summary


@every_kind
def test_capture_is_exact(kind: Kind) -> None:
    """By the general path and, where the layers allow it, fused."""
    case = kind.build()
    assert_capture_is_exact(case.sample, parts_of(case, kind), len(TASKS))


@every_kind
def test_what_is_no_matrix_gets_the_plain_joint_gradient(kind: Kind) -> None:
    case = kind.build()
    original = case.sample.fork()
    parts = parts_of(case, kind)
    ortho = OrthoLora(case.sample.model, TASKS)
    torch.manual_seed(5)
    run_step(ortho, case.sample.model, parts)
    ortho.resolve()
    torch.manual_seed(5)
    joint_step(original, parts)
    found, expected = other_parameters(case.sample.model), other_parameters(original)
    for name, parameter in expected.items():
        assert bool(parameter.grad.any()), f"{name}: the test proves nothing"  # type: ignore[union-attr]
        assert_close(found[name].grad, parameter.grad, what=name)  # type: ignore[arg-type]


@pytest.mark.filterwarnings(*PEFT_WARNS)
@every_kind
def test_trained_and_read_by_plain_peft(kind: Kind, tmp_path: Path) -> None:
    case = kind.build()
    model = case.sample.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = outputs(copy.deepcopy(model), case.sample)
    train(case, kind)
    assert case.sample.shape[0] == ROWS
    for name, parameter in model.named_parameters():
        # PEFT merges and unmerges nn.MultiheadAttention in every forward: its base moves by rounding.
        drift = 1e-6 if kind is KINDS["nn.MultiheadAttention"] else 0.0
        changed = not torch.allclose(parameter, before[name], rtol=0.0, atol=drift)
        assert changed == parameter.requires_grad, f"{name} {'changed' if changed else 'did not change'}"
    trained = outputs(model, case.sample)
    assert float((trained - start).norm()) > 1e-3 * float(start.norm())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.bare, tmp_path)
    assert_close(outputs(loaded, case.sample), trained, 1e-5)
