"""What a check says of plan, memory, time and capture is what a training does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import language_workspaces
import workspaces
from ortholora.engine.rules import get_rule
from ortholora.engine.rules.base import memory_of
from ortholora.errors import UserError
from ortholora.study.check import check as checking
from ortholora.study.check.check import check
from ortholora.study.check.cost import _too_large, parts_of
from ortholora.study.check.findings import Findings
from ortholora.study.check.plan import costs_of, plan_of
from ortholora.trainers.cost import available_memory_bytes, memory_bytes
from ortholora.trainers.trainer import OrthoTrainer


def checked(space, **options) -> Findings:
    found = Findings()
    check(space.config, space.tasks, found, **options)
    return found


@pytest.mark.parametrize("layout", ["auto", "padding-free"])
def test_the_plan_is_what_a_training_counts(tmp_path: Path, layout: str) -> None:
    trainer = workspaces.trainer(tmp_path, mixing={"layout": layout}, training={"steps": 3})
    plan, costs = plan_of(trainer), costs_of(trainer, range(3))
    trainer.train()
    trainer._add_up_tokens()
    real, padded, launches = (int(count) for count in trainer.tokens)
    assert sum(cost.tokens for cost in costs) == real
    assert sum(cost.padded for cost in costs) == padded
    assert sum(cost.micro_batches for cost in costs) == launches
    assert plan.padding == pytest.approx(1 - real / padded)
    assert (plan.steps, plan.micro_batches) == (3, pytest.approx(launches / 3))
    assert plan.passes == pytest.approx({name: 3 * rows / 96 for name, rows in plan.quota.items()})
    assert plan.largest == max(cost.largest for cost in costs)


@pytest.mark.parametrize(("rule", "dtype"), [("ortho", "bfloat16"), ("moco", "float32")])
def test_memory_by_part_is_what_is_allocated(tmp_path: Path, rule: str, dtype: str) -> None:
    method = workspaces.Method(rule, rule)
    trainer = workspaces.trainer(tmp_path, method, capture={"buffer_dtype": dtype}, training={"steps": 1})
    parts = parts_of(trainer, getattr(torch, dtype))
    trainer.train()
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert parts.optimizer == sum(value.nbytes for value in states if value.dim())
    buffers = sum(group.buffer.nbytes for group in trainer.ortho._groups)
    means = sum(value.nbytes for value in trainer.ortho._means._sums or [])
    assert (means > 0) == (memory_of(get_rule(rule)) is not None)
    assert parts.task_gradients == buffers + means
    assert parts.frozen + parts.trained == sum(
        tensor.nbytes for tensor in [*trainer.model.parameters(), *trainer.model.buffers()]
    )


def test_a_language_model_is_checked(tmp_path: Path) -> None:
    space = language_workspaces.workspace()
    found = checked(space)
    assert not found.errors
    assert found.facts["time"]["measured_steps"] == 4
    assert found.facts["time"]["training_seconds"] == pytest.approx(6 * found.facts["time"]["step_seconds"])
    layers = found.facts["capture"]["layers"]
    assert len(layers) == 14
    assert set(layers.values()) == {"one pass, fused"}
    assert any("count: the texts of 24 of 24 dev rows are in train" in warning for warning in found.warnings)


def test_what_cannot_be_split_by_row_is_said_by_layer() -> None:
    adapter = {"target_modules": ["word_embeddings", "query"]}
    found = checked(workspaces.workspace(lora=adapter), measure=False)
    assert not found.errors
    kinds = {name.rpartition(".")[2]: how for name, how in found.facts["capture"]["layers"].items()}
    assert kinds["query"] == "one pass, fused"
    assert kinds["word_embeddings"].startswith("task-pure micro-batches only (LoRA on an embedding")
    assert found.facts["plan"]["layout"] == "by-task"
    assert "time" not in found.facts
    assert found.facts["memory"]["is_lower_bound"]


def test_what_a_training_refuses_is_an_error() -> None:
    found = checked(workspaces.workspace(mixing={"micro_batches": 100}), measure=False)
    assert "fewer rows than micro-batches" in found.errors[0].what
    found = checked(workspaces.workspace(training={"arguments": {"eval_stepz": 3}}), measure=False)
    assert "eval_stepz" in found.errors[0].what  # although a check evaluates nothing
    assert "plan" not in found.facts


def test_too_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "available_memory_bytes", lambda: 1000)
    found = checked(workspaces.workspace(), measure=False)
    assert [warning for warning in found.warnings if "0.0 GB are available on cpu" in warning]


def test_a_step_that_does_not_fit_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(OrthoTrainer, "train", full)
    found = checked(workspaces.workspace())
    assert "mixing.max_tokens" in found.errors[0].todo
    with pytest.raises(RuntimeError, match="a bug"):
        _too_large(RuntimeError("a bug"))
    with pytest.raises(UserError, match="mixing"):
        raise _too_large(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def test_memory_is_read_from_the_system() -> None:
    own, available = memory_bytes(), available_memory_bytes()
    if own is None or available is None:
        pytest.skip("this system does not tell")
    assert 10_000_000 < own <= available
