"""`ResolveMixin` on a plain `transformers.Trainer`, as docs/trainers.md shows it: task losses, conflicts, resume."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments

# PEFT 0.18 looks for the folder of a base model that was made in memory.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")

TASKS = ["long", "short", "rare"]
ROWS = 24


def documented() -> type:
    """The class that docs/trainers.md shows."""
    page = Path(__file__).parent.parent.parent / "docs" / "trainers.md"
    code = re.search(r"```python\n(from torch\.nn\.functional.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict[str, Any] = {"__name__": "documented"}
    exec(code, names)
    return names["OrthoClassifier"]


def model() -> nn.Module:
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
        num_labels=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    return get_peft_model(LlamaForSequenceClassification(config), lora)


def rows() -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(1, 30, (6,), generator=draw),
            "labels": torch.tensor(index % 3),
            "task_ids": [0, 1, 0, 1, 0, 2][index % 6],
        }
        for index in range(ROWS)
    ]


def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    stacked = {key: torch.stack([row[key] for row in batch]) for key in ("input_ids", "labels")}
    return stacked | {"task_ids": [row["task_ids"] for row in batch]}


def trainer(folder: Path, **changes: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 6,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_steps": 3,
        "remove_unused_columns": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(**settings | changes)
    data = rows()
    return documented()(model(), arguments, tasks=TASKS, train_dataset=data, eval_dataset=data, data_collator=collate)


def logs(made: Any) -> list[dict[str, float]]:
    return [entry for entry in made.state.log_history if "loss" in entry]


def test_a_tasks_loss_is_the_mean_over_its_rows(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=1, logging_steps=1, per_device_train_batch_size=ROWS, save_strategy="no")
    batch = collate(rows())
    ids = torch.tensor(batch.pop("task_ids"))
    with torch.no_grad():
        logits = made.model(input_ids=batch["input_ids"]).logits
        losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    made.train()
    (entry,) = logs(made)
    for index, task in enumerate(TASKS):
        assert math.isclose(entry[f"loss/{task}"], float(losses[ids == index].mean()), rel_tol=1e-5)
    assert {"conflict/removed", "conflict/long-rare"} <= entry.keys()


def test_an_evaluation_counts_for_nothing(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    assert made.evaluate()["eval_loss"] > 0
    assert made.task_losses.take() == {}
    assert made.conflicts.report() is None


def test_logs_of_a_resumed_run_are_those_of_the_uninterrupted_one(tmp_path: Path) -> None:
    """The checkpoint lies between two logs."""
    whole = trainer(tmp_path)
    whole.train()
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    found, expected = logs(resumed)[-1], logs(whole)[-1]
    own = {key for key in expected if key.startswith(("loss/", "conflict", "size/", "pace/"))}
    assert len(own) == 3 + 2 + 2 * 3 + 3 + 3
    assert {key: found[key] for key in own} == pytest.approx({key: expected[key] for key in own}, rel=1e-5)
    assert resumed.conflicts.report()["steps"] == 4


def test_an_interrupted_steps_losses_are_forgotten(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.task_losses.add(torch.ones(3), [0, 1, 2])
    made.forget_unfinished_step()
    assert made.task_losses.take() == {}


def test_without_a_rule_there_are_losses_and_no_conflicts(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.ortho.detach()
    made.ortho = None
    made.train()
    assert all(f"loss/{task}" in entry for entry in logs(made) for task in TASKS)
    assert not any(key.startswith(("conflict", "size/")) for entry in logs(made) for key in entry)
