"""Half precision trains what float32 trains, up to its rounding; a step that overflowed leaves nothing behind."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from engine import _models as models
from engine._rules import Means
from workspaces import JOINT, ORTHO

from ._runs import Loop, Run, assert_same_run, distance, train, trainer_of, trainer_run

#: Products rounded to 8 bits (bf16: 2^-9) or 11 (fp16: 2^-12), summed up over six steps of momentum SGD.
BFLOAT16 = {"largest": 0.05, "drift": 0.01, "losses": 5e-3}
FLOAT16 = {"largest": 0.01, "drift": 1e-3, "losses": 1e-3}
#: More than float32 in another order could do: half precision was really on.
ROUNDED = 2e-5
BUILDS = pytest.mark.parametrize("build", [models.bert, models.llama], ids=["bert", "llama"])
METHODS = pytest.mark.parametrize("method", [JOINT, ORTHO], ids=["joint", "ortho"])


def assert_close_run(found: Run, expected: Run, limits: dict[str, float]) -> None:
    assert_same_run(found, expected, **limits)
    assert distance(found, expected).largest > ROUNDED


@pytest.mark.parametrize("rule", [None, "sum", "ortho"], ids=["joint", "sum", "ortho"])
@BUILDS
def test_bfloat16_autocast_in_a_loop(build: Any, rule: Any) -> None:
    exact = Loop(build, rule=rule).run()
    found = Loop(build, rule=rule, forward=lambda: torch.autocast("cpu", torch.bfloat16)).run()
    assert_close_run(found, exact, BFLOAT16)


@METHODS
def test_bfloat16_autocast_by_the_trainers_argument(tmp_path: Path, method: Any) -> None:
    exact = trainer_run(tmp_path / "exact", method)
    found = trainer_run(tmp_path / "found", method, training={"arguments": {"bf16": True}})
    assert_close_run(found, exact, BFLOAT16)


#: A rule, and whether the loop forgets a step that overflowed or resolves it as any other. (A resolved one
#: draws visits, and counts for a rule with memory.)
SKIPPING = pytest.mark.parametrize(
    ("rule", "discard"),
    [("sum", False), ("ortho", False), ("ortho", True), (Means, True)],
    ids=["sum-resolved", "ortho-resolved", "ortho-discarded", "memory-discarded"],
)


def float16_is_float32(build: Any, rule: Any, discard: bool, device: str, **options: Any) -> None:
    """Train with a scale far too large: the first steps overflow and are skipped, in both runs."""

    def loop(**settings: Any) -> Loop:
        made = rule() if rule is Means else rule
        return Loop(build, rule=made, steps=8, clip=5.0, discard=discard, device=device, **options, **settings)

    scaler = torch.amp.GradScaler(device, init_scale=2.0**30, backoff_factor=2.0**-8)
    found = loop(forward=lambda: torch.autocast(device, torch.float16), scaler=scaler).run()
    assert 0 in found.skipped
    assert len(found.skipped) <= 3
    assert scaler.get_scale() < 2.0**30
    assert_close_run(found, loop(skip=found.skipped).run(), FLOAT16)


@SKIPPING
@BUILDS
def test_float16_with_a_scaler_in_a_loop(build: Any, rule: Any, discard: bool) -> None:
    float16_is_float32(build, rule, discard, "cpu", cuts=(3, 1, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@SKIPPING
@BUILDS
def test_float16_with_a_scaler_on_a_gpu(build: Any, rule: Any, discard: bool) -> None:
    float16_is_float32(build, rule, discard, "cuda", cuts=(3, 1, 4))


class ThrowAway(TrainerCallback):
    """Throws gradients away, as a scaler does with those that overflowed."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            for parameter in kwargs["model"].parameters():
                parameter.grad = None


class Skipped(TrainerCallback):
    """Notes the steps that the scaler skipped."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator, self.steps = accelerator, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.accelerator.optimizer_step_was_skipped:
            self.steps.append(state.global_step - 1)


#: The Trainer steps its schedule only where a step was not skipped.
CONSTANT = {"schedule": "constant_with_warmup", "steps": 8, "max_grad_norm": 5.0}


@METHODS
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_float16_with_a_scaler_in_the_trainer(
    tmp_path: Path, method: Any, micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate offers fp16 on accelerators alone; what it would set there is set by hand."""
    trainer_with = functools.partial(trainer_of, mixing={"layout": "mixed", "micro_batches": micro_batches})
    with monkeypatch.context() as patch:
        trainer = trainer_with(tmp_path / "found", method, training=dict(CONSTANT))
        patch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
        trainer.accelerator.native_amp = True
        trainer.accelerator.scaler = torch.amp.GradScaler(
            trainer.args.device.type, init_scale=2.0**30, backoff_factor=2.0**-8
        )
        skipped = Skipped(trainer.accelerator)
        trainer.add_callback(skipped)
        found = train(trainer)
        assert trainer.accelerator.mixed_precision == "fp16"
        assert trainer.accelerator.scaler.get_scale() < 2.0**30
    assert 0 in skipped.steps
    assert len(skipped.steps) <= 3
    exact = trainer_with(tmp_path / "exact", method, training=dict(CONSTANT))
    exact.add_callback(ThrowAway(skipped.steps))
    assert_close_run(found, train(exact), FLOAT16)
