"""`OrthoSFTTrainer` against T separate backward passes, against itself cut otherwise, and against TRL's own trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, concatenate_datasets
from torch import Tensor, nn

pytest.importorskip("trl")

from trl import SFTConfig, SFTTrainer

from language import ROWS, TASKS, WHOLE, adapted, assert_close, lora_weights, named, recorded, rows, settings, tokenizer
from language import sft_trainer as trainer
from ortholora.errors import UserError
from ortholora.trainers.task_column import number_tasks

# transformers 5 renamed the argument; both names work.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")

# ---- the oracle ------------------------------------------------------------------------------------------------


def oracle(model: nn.Module, data: Dataset, kind: str, dft: bool = False) -> dict[str, Tensor]:
    """Each row alone, unpadded, full logits; T calls of `autograd.grad` on the tasks' own token means."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = dict.fromkeys(TASKS, 0.0)
    counts = dict.fromkeys(TASKS, 0)
    for row in data:
        task = row.get("task") or row["channel"]
        text, targets = written_out(row, kind)
        ids = torch.tensor([tokenizer()(text)["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        if dft:
            losses = losses * (-losses.detach()).exp()
        targets = min(targets, ids.shape[1] - 1)
        sums[task] = sums[task] + losses[-targets:].sum()
        counts[task] += targets
    found = [torch.autograd.grad(sums[t] / counts[t], list(parameters.values()), retain_graph=True) for t in TASKS]
    return {name: torch.stack([g[i] for g in found]) for i, name in enumerate(parameters)}


def written_out(row: dict[str, Any], kind: str) -> tuple[str, int]:
    """The text that is trained on and how many of its last tokens are targets."""
    if kind == "text":
        return row["text"] + "<eos>", 1000
    if kind == "prompt":
        return row["prompt"] + row["completion"] + "<eos>", len(row["completion"].split()) + 1
    user, assistant = (message["content"] for message in row["messages"])
    text = f"user: {user} assistant: {assistant} <eos>"
    return text, len(assistant.split()) + 1 if kind == "assistant" else 1000


CASES = {
    "padded": {},
    "one row at a time": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": ROWS},
    "accumulated": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    "packed": {"packing": True},
    "packed, two rows at a time": {
        "packing": True,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_length": 40,
    },
    "packed, eager": {"packing": True, "attention": "eager"},
    "packed, split": {"packing": True, "packing_strategy": "bfd_split"},
    "padding-free": {"padding_free": True, "max_length": None},
    "padding-free, accumulated": {
        "padding_free": True,
        "max_length": None,
        "pad_to_multiple_of": 8,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 4,
    },
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing, packed": {"gradient_checkpointing": True, "packing": True},
    "checkpointing, reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "general path": {"fused": False, "packing": True},
    "dft": {"loss_type": "dft", "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    "shuffled": {"shuffle_dataset": True, "packing": True},
}


@pytest.mark.parametrize("case", CASES)
def test_task_gradients_are_those_of_each_tasks_own_token_mean(case: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, **{**WHOLE, "max_steps": 1, **CASES[case]})
    taken = recorded(made)
    made.train()
    assert len(taken) == 1
    assert_close(named(taken[0], adapted()), oracle(adapted(), rows(ROWS), "text", dft=case == "dft"))


@pytest.mark.parametrize("cut", [{}, {"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
@pytest.mark.parametrize(
    ("kind", "data", "changes"),
    [
        ("prompt", "prompt", {}),
        ("messages", "messages", {}),
        ("assistant", "messages", {"assistant_only_loss": True}),
    ],
)
def test_only_targets_count(kind: str, data: str, changes: dict[str, Any], cut: dict[str, Any], tmp_path: Path) -> None:
    made = trainer(tmp_path, kind=data, **{**WHOLE, "max_steps": 1, **changes, **cut})
    taken = recorded(made)
    made.train()
    assert_close(named(taken[0], adapted()), oracle(adapted(), rows(ROWS, data), kind))


def test_a_tokenised_data_set_with_a_column_channel(tmp_path: Path) -> None:
    plain = rows(ROWS, column="channel")
    data = plain.map(lambda row: {"input_ids": tokenizer()(row["text"] + "<eos>")["input_ids"]})
    made = trainer(tmp_path, data.remove_columns("text"), **{**WHOLE, "max_steps": 1})
    taken = recorded(made)
    made.train()
    assert_close(named(taken[0], adapted()), oracle(adapted(), plain, "text"))


def test_rows_without_a_task_and_numbered_names() -> None:
    with_gap = concatenate_datasets([rows(ROWS), rows(ROWS).remove_columns("task")])
    with pytest.raises(UserError, match="a row without one"):
        number_tasks(with_gap)
    with pytest.raises(UserError, match="a row without one"):
        list(number_tasks(with_gap.to_iterable_dataset(), tasks=TASKS)[0])
    labels = Dataset.from_dict({"task": [1, 0, 1]}).cast_column("task", ClassLabel(names=["sum", "qa"]))
    numbered, names = number_tasks(labels)
    assert names == ["qa", "sum"]
    assert numbered["task_ids"][:] == [0, 1, 0]
    assert [row["task_ids"] for row in number_tasks(labels.to_iterable_dataset(), tasks=names)[0]] == [0, 1, 0]


def test_a_streaming_data_set_needs_the_names_of_its_tasks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="streaming data set cannot be listed"):
        trainer(tmp_path, rows(ROWS).to_iterable_dataset())
    made = trainer(tmp_path, rows(ROWS).to_iterable_dataset(), tasks=TASKS, **{**WHOLE, "max_steps": 1})
    taken = recorded(made)
    made.train()
    assert_close(named(taken[0], adapted()), oracle(adapted(), rows(ROWS), "text"))


# ---- equivalences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("dft", "padded")])
def test_the_cut_changes_nothing(case: str, tmp_path: Path) -> None:
    """Law 5, over three steps and with visit orders: by the length of the way the weights have gone."""
    start = lora_weights(adapted())
    ways = []
    for changes in ({}, CASES[case]):
        made = trainer(tmp_path, **{**WHOLE, "optim": "sgd", "learning_rate": 0.05, **changes})
        made.train()
        ways.append({name: weight - start[name] for name, weight in lora_weights(made.model).items()})
    assert_close(ways[1], ways[0], relative=1e-4)


STOCK = {
    "padded": {},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3},
    "packed": {"packing": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "padding-free": {"padding_free": True, "max_length": None},
    "dft": {"loss_type": "dft", "gradient_accumulation_steps": 2},
    "label smoothing": {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "shuffled": {"packing": True, "shuffle_dataset": True},
}


@pytest.mark.filterwarnings("ignore:.label_smoothing_factor. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["text", "prompt"])
@pytest.mark.parametrize("case", STOCK)
def test_rule_sum_with_the_token_mean_is_trls_own_trainer(case: str, kind: str, tmp_path: Path) -> None:
    """Law 2, step for step; the logged loss, entropy and accuracy too."""
    changes = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 4, **STOCK[case]}
    own = trainer(tmp_path, rows(24, kind), rule="sum", loss="token-mean", **changes)
    own.train()
    stock = SFTTrainer(
        adapted(attention="sdpa"),
        SFTConfig(**settings(tmp_path, **changes)),
        train_dataset=rows(24, kind),
        processing_class=tokenizer(),
    )
    stock.train()
    assert_close(lora_weights(own.model), lora_weights(stock.model), relative=1e-6)
    for found, expected in zip(own.state.log_history[:-1], stock.state.log_history[:-1], strict=True):
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"packing": True}, {"gradient_accumulation_steps": 4}], ids=str)
def test_rule_sum_is_joint_training_without_capture(changes: dict[str, Any], tmp_path: Path) -> None:
    weights = []
    for rule in ("sum", None):
        made = trainer(tmp_path, rows(24), rule=rule, **changes)
        assert (made.ortho is None) == (rule is None)
        made.train()
        weights.append(lora_weights(made.model))
    assert_close(*weights, relative=1e-6)


def test_the_two_losses_and_the_rules_differ(tmp_path: Path) -> None:
    """Otherwise the tests above would compare a thing with itself."""
    weights = []
    for changes in ({"rule": "sum"}, {"rule": "sum", "loss": "token-mean"}, {"rule": "ortho"}):
        made = trainer(tmp_path, **WHOLE, **changes)
        made.train()
        weights.append(lora_weights(made.model))
    for other in weights[1:]:
        assert max(float((other[n] - w).abs().max()) for n, w in weights[0].items()) > 1e-4


def test_a_weight_scales_its_tasks_gradient(tmp_path: Path) -> None:
    gradients = []
    for weights in (None, {"count": 3.0}):
        made = trainer(tmp_path, task_weights=weights, **{**WHOLE, "max_steps": 1})
        gradients.append(recorded(made))
        made.train()
    factor = torch.tensor([1.0, 3.0, 1.0])[:, None, None]
    assert_close(gradients[1][0], {n: g * factor for n, g in gradients[0][0].items()})
