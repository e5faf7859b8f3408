"""Settings must do what they say, and what cannot work is refused before it costs time."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import workspaces
from ortholora.errors import UserError
from ortholora.models.adapter import add_lora
from ortholora.runs import arguments as module
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.provenance import commit, fingerprint
from ortholora.runs.run import Run
from ortholora.runs.train import train_run
from workspaces import JOINT, ORTHO, TASKS


def test_heads_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    def moved(out: str, **training: Any) -> tuple[float, float]:
        """How far heads and adapter went in one step of Adam, which is the learning rate."""
        trainer = workspaces.trainer(
            tmp_path / out, JOINT, training={"steps": 1, "schedule": "constant_with_warmup", **training}
        )
        before = workspaces.weights(trainer)
        trainer.train()
        after = workspaces.weights(trainer)
        far = {name: float((after[name] - before[name]).abs().max()) for name in before}
        heads = max(value for name, value in far.items() if name.startswith("heads"))
        return heads, max(value for name, value in far.items() if name.startswith("encoder"))

    assert moved("plain") == pytest.approx((0.01, 0.01), rel=0.05)
    assert moved("own", head_learning_rate=0.05) == pytest.approx((0.05, 0.01), rel=0.05)


class StopAt(Silent):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int) -> None:
        self.stop_requested = done >= self.at


def test_patience_survives_a_stop(tmp_path: Path) -> None:
    """A resumed run stops early where the uninterrupted one does."""
    settings = {"steps": 40, "eval_every": 2, "selection": "best", "patience": 3, "learning_rate": 0.05}
    space = workspaces.workspace(training=settings)
    whole = train_run(Run(ORTHO, TASKS, 0, tmp_path / "whole"), space)
    end = last_step(tmp_path / "whole")
    assert end < 40
    with pytest.raises(Stopped):
        train_run(Run(ORTHO, TASKS, 0, tmp_path / "cut"), space, StopAt(end - 1))
    cut = train_run(Run(ORTHO, TASKS, 0, tmp_path / "cut"), space)
    assert last_step(tmp_path / "cut") == end
    assert cut.metrics == whole.metrics


def last_step(out: Path) -> int:
    return max(int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("checkpoint-*"))


@pytest.mark.parametrize("key", ["seed", "output_dir", "max_steps", "label_smoothing_factor"])
def test_arguments_that_the_tool_decides(tmp_path: Path, key: str) -> None:
    config = workspaces.config(training={"arguments": {key: 1}})
    with pytest.raises(UserError, match=rf"training\.arguments\.{key} cannot be set"):
        module.training_arguments(config, tmp_path, 0, 8)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("weight_decay", None, "training.arguments.weight_decay"),
        ("report_to", None, "report_to"),
        ("weight_decay", "much", "training.arguments.weight_decay"),
        ("weight_decay", True, "training.arguments.weight_decay"),
        ("learning_rate", float("1e9999"), "training.arguments.learning_rate"),
        ("adam_beta1", 2.0, "Invalid beta parameter"),
        ("weight_decay", -1.0, "Invalid weight_decay"),
        ("lr_scheduler_kwargs", {"nothing": 1}, "nothing"),
        ("optim", "adafactor_of_nobody", "adafactor_of_nobody"),
    ],
)
def test_a_wrong_argument_shows_before_the_training(tmp_path: Path, key: str, value: Any, part: str) -> None:
    config = workspaces.config()
    config.training.arguments[key] = value
    with pytest.raises(UserError, match=part):
        module.training_arguments(config, tmp_path, 0, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora_dropout", None), ("rank_pattern", 3), ("use_rslora", "perhaps"), ("r", True), ("bias", [])],
)
def test_a_wrong_option_of_peft_is_named(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"lora\.options\.{key}|{key}"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), {"target_modules": ["0"], key: value}, 0)


def test_more_micro_batches_than_a_small_task_has_rows(tmp_path: Path) -> None:
    """Fine for all tasks together; the run of one of them is then cut into fewer."""
    space = workspaces.workspace(mixing={"micro_batches": 9, "rows_per_task": 4, "quota": "equal"})
    space.config.mixing.rows_per_task = 2
    space.config.mixing.micro_batches = 6
    result = train_run(Run(JOINT, ("topic",), 0, tmp_path), space)
    assert set(result.metrics) == {"topic"}


@pytest.mark.parametrize("setting", [{"fsdp": "full_shard"}, {"deepspeed": {"train_batch_size": 1}}])
def test_what_owns_the_gradients_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    trainer = workspaces.trainer(tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for key, value in setting.items():
        object.__setattr__(arguments, key, value)
    with pytest.raises(UserError, match="OrthoTrainer cannot train so"):
        type(trainer)(
            trainer._bare_model(), arguments, tasks=trainer.tasks, tokenizer=None, card=trainer.card, quota=[1]
        )


def test_the_fingerprint_is_of_the_rows_not_of_their_place() -> None:
    space = workspaces.workspace()
    before = fingerprint(space.config, space.tasks, {})
    for task in space.tasks:
        task.sources["train"] = "elsewhere/" + task.sources["train"]
    assert fingerprint(space.config, space.tasks, {}) == before
    space.tasks[0].sources["train"] += "0"
    assert fingerprint(space.config, space.tasks, {}) != before


def test_the_commit_is_this_projects_own() -> None:
    """In a checkout: its commit. (An installed copy inside another repository has none.)"""
    here = Path(importlib.util.find_spec("ortholora").origin).parent  # type: ignore[union-attr,arg-type]
    inside = any((folder / ".git").exists() for folder in here.parents)
    assert (commit() is not None) == inside


def test_head_outputs_are_float32_under_autocast(tmp_path: Path) -> None:
    head = workspaces.trainer(tmp_path)._bare_model().head(0).eval()
    pooled = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(pooled)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, head(pooled))


def test_rows_are_counted_out_by_tokens() -> None:
    """On average the tasks have equally many tokens in a step, and the step as many rows as before."""
    space = workspaces.workspace(mixing={"unit": "tokens", "rows_per_task": 40})
    quota = space.quota()
    assert sum(quota.values()) == 120
    tokens = {name: rows * np.mean(space.encoded(name).train.lengths) for name, rows in quota.items()}
    assert max(tokens.values()) < 1.1 * min(tokens.values())
    assert workspaces.workspace(mixing={"rows_per_task": 40}).quota() == dict.fromkeys(TASKS, 40)
    assert quota["topic"] != 40
