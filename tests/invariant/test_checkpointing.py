"""Activation checkpointing changes nothing: none = non-reentrant = reentrant, dropout included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft.tuners.lora import LoraLayer
from torch import nn

from engine import _models as models
from workspaces import CHECKPOINTING, JOINT, ORTHO

from ._runs import Loop, assert_same_run, trainer_run

MODES = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])


@MODES
@pytest.mark.parametrize("rule", ["sum", "ortho"])
@pytest.mark.parametrize("build", [models.bert, models.llama], ids=["bert", "llama"])
def test_a_loop(build: Any, rule: str, reentrant: bool) -> None:
    calls = {False: 0, True: 0}

    def prepare(model: nn.Module, checkpointed: bool) -> None:
        def count(*_: Any) -> None:
            calls[checkpointed] += 1

        if checkpointed:
            # transformers 5 renamed it
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        next(m for m in model.modules() if isinstance(m, LoraLayer)).register_forward_pre_hook(count)

    options = {"lora_dropout": 0.2}
    cuts = (5, 3)
    plain = Loop(build, options, rule, cuts, prepare=lambda model: prepare(model, False)).run()
    found = Loop(build, options, rule, cuts, prepare=lambda model: prepare(model, True)).run()
    assert calls[True] == 2 * calls[False]  # it was recomputed
    assert plain.conflicts
    assert_same_run(found, plain, largest=1e-4, drift=1e-5, losses=1e-6)


@MODES
@pytest.mark.parametrize("method", [JOINT, ORTHO], ids=["joint", "ortho"])
def test_the_trainer(tmp_path: Path, method: Any, reentrant: bool) -> None:
    sections = {"lora": {"dropout": 0.2}, "mixing": {"layout": "mixed", "micro_batches": 3}}
    arguments = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
    plain = trainer_run(tmp_path / "plain", method, **sections)
    found = trainer_run(tmp_path / "found", method, training={"arguments": arguments}, **sections)
    assert_same_run(found, plain, largest=1e-4, drift=1e-5, losses=1e-6)
