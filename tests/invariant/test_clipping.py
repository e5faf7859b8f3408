"""Clipping acts on what the rule wrote, not on the joint gradient that flowed before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from engine import _models as models
from ortholora.engine import StepStats

from ._runs import Loop, assert_same_run, distance, train, trainer_of

LIMIT = 0.05


def norm_of(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def gradients_of(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def private_of(model: nn.Module) -> list[Tensor]:
    """Gradients that no rule touches: those of the heads."""
    return [p.grad for n, p in model.named_parameters() if p.grad is not None and "lora_" not in n]


def joint_norm(model: nn.Module, stats: StepStats) -> float:
    """`‖Σ_t g_t‖` from the Gram, with the gradients that are private to a task."""
    return math.sqrt(float(stats.gram.double().sum()) + norm_of(private_of(model)) ** 2)


def scale(model: nn.Module, norm: float) -> None:
    for gradient in gradients_of(model):
        gradient.mul_(min(1.0, LIMIT / norm))


@pytest.mark.parametrize("cuts", [(8,), (3, 5)], ids=str)
@pytest.mark.parametrize("build", [models.bert, models.llama], ids=["bert", "llama"])
def test_a_loop(build: Any, cuts: tuple[int, ...]) -> None:
    def by_the_resolved(model: nn.Module, stats: StepStats) -> None:
        scale(model, norm_of(gradients_of(model)))

    def by_the_joint(model: nn.Module, stats: StepStats) -> None:
        scale(model, joint_norm(model, stats))

    clipped = Loop(build, cuts=cuts, clip=LIMIT).run()
    assert clipped.conflicts
    by_hand, wrong = (Loop(build, cuts=cuts, after_resolve=hook).run() for hook in (by_the_resolved, by_the_joint))
    assert_same_run(clipped, by_hand)
    assert distance(wrong, by_hand).largest > 0.01, "both norms are the same: the test proves nothing"
    assert distance(Loop(build, cuts=cuts).run(), by_hand).largest > 0.01, "nothing was clipped"


class AfterClipping(TrainerCallback):
    """Keeps the gradients that the optimizer gets."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients.append([gradient.clone() for gradient in gradients_of(kwargs["model"])])


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_trainer(tmp_path: Path, micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(
        tmp_path, mixing={"layout": "mixed", "micro_batches": micro_batches}, training={"max_grad_norm": LIMIT}
    )
    resolved: list[list[Tensor]] = []
    joint: list[float] = []

    def note(stats: StepStats) -> None:
        resolved.append([gradient.clone() for gradient in gradients_of(trainer.model)])
        joint.append(joint_norm(trainer.model, stats))

    monkeypatch.setattr(trainer, "on_resolved", note)
    after = AfterClipping()
    trainer.add_callback(after)
    train(trainer)
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == len(resolved) == len(after.gradients) == trainer.state.global_step
    for step, before in enumerate(resolved):
        norm = norm_of(before)
        assert norm > 2 * LIMIT
        assert float(logged[step]) == pytest.approx(norm, rel=1e-5)
        assert norm_of(after.gradients[step]) == pytest.approx(LIMIT, rel=1e-4)
        for found, expected in zip(after.gradients[step], before, strict=True):
            torch.testing.assert_close(found, expected * (LIMIT / norm), rtol=1e-4, atol=1e-9)
    assert max(abs(norm_of(before) / other - 1) for before, other in zip(resolved, joint, strict=True)) > 1e-3
