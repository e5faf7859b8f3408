"""`OrthoTrainer`: equivalences, the meaning of a task's loss, logs and resume."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

import workspaces
from ortholora.runs import arguments
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.run import Run
from ortholora.runs.train import train_run
from ortholora.trainers.trainer import OrthoTrainer
from workspaces import CHECKPOINTING, JOINT, ORTHO, SUM, TASKS

NO_DROPOUT = {"head_dropout": 0.0}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def trained(out: Path, *args: Any, **sections: Any) -> dict[str, Tensor]:
    trainer = workspaces.trainer(out, *args, **sections)
    trainer.train()
    return workspaces.weights(trainer)


def test_rule_sum_is_plain_joint_training(tmp_path: Path) -> None:
    joint = trained(tmp_path / "joint", JOINT, **NO_DROPOUT)
    summed = trained(tmp_path / "sum", SUM, **NO_DROPOUT)
    assert largest_difference(joint, summed) < 1e-6


def test_ortho_differs_from_joint_where_tasks_conflict(tmp_path: Path) -> None:
    joint = trained(tmp_path / "joint", JOINT, **NO_DROPOUT)
    ortho = trained(tmp_path / "ortho", ORTHO, **NO_DROPOUT)
    assert largest_difference(joint, ortho) > 1e-4


@pytest.mark.parametrize("rule", [JOINT, ORTHO], ids=["joint", "ortho"])
@pytest.mark.parametrize(
    "mixing",
    [
        {"layout": "mixed", "micro_batches": 4},
        {"layout": "by-length", "micro_batches": 4},
        {"layout": "by-task"},
        {"layout": "auto", "launch_tokens": 0},
        {"layout": "mixed", "max_tokens": 60},
        {"layout": "padding-free", "micro_batches": 3},
    ],
    ids=str,
)
def test_the_cut_changes_nothing(tmp_path: Path, rule: Any, mixing: dict[str, Any]) -> None:
    """4 x 3 rows = 1 x 12 rows, by largest difference and mean drift; the trap scales the gradient by 4."""
    whole = trained(tmp_path / "whole", rule, mixing={"layout": "mixed"}, **NO_DROPOUT)
    trainer = workspaces.trainer(tmp_path / "cut", rule, mixing=mixing, **NO_DROPOUT)
    trainer.train()
    assert trainer.tokens[2] > 2 * trainer.state.global_step  # there were several micro-batches a step
    assert_same_weights(whole, workspaces.weights(trainer))


@pytest.mark.parametrize("rule", [JOINT, ORTHO], ids=["joint", "ortho"])
def test_accumulation_by_the_trainer_changes_nothing(
    tmp_path: Path, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", rule, mixing={"layout": "mixed"}, **NO_DROPOUT)
    accumulating = functools.partial(TrainingArguments, gradient_accumulation_steps=4)
    monkeypatch.setattr(arguments, "TrainingArguments", accumulating)
    trainer = workspaces.trainer(tmp_path / "cut", rule, **NO_DROPOUT)
    assert trainer.args.gradient_accumulation_steps == 4
    trainer.train()
    assert trainer.tokens[2] == 4 * trainer.state.global_step
    assert_same_weights(whole, workspaces.weights(trainer))


def assert_same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert largest_difference(first, second) < 2e-4
    drift = torch.stack([(first[n] - second[n]).mean() for n in first])
    assert float(drift.abs().max()) < 2e-5


def test_an_adapter_that_cannot_be_split_by_row_gets_one_task_in_each_micro_batch(tmp_path: Path) -> None:
    """DoRA: `auto` is `by-task` there, for joint training too, so that both have the same cuts."""
    sections = {"lora": {"options": {"use_dora": True}}, **NO_DROPOUT}
    weights = []
    for method in (JOINT, SUM):
        trainer = workspaces.trainer(tmp_path / method.name, method, **sections)
        assert trainer.planner.layout == "by-task"
        trainer.train()
        assert trainer.tokens[2] >= 3 * trainer.state.global_step
        weights.append(workspaces.weights(trainer))
    assert_same_weights(*weights)


@pytest.mark.parametrize("rule", [JOINT, ORTHO], ids=["joint", "ortho"])
def test_a_padding_free_step_is_the_padded_step(tmp_path: Path, rule: Any) -> None:
    padded = trained(tmp_path / "padded", rule, mixing={"layout": "mixed"}, **NO_DROPOUT)
    trainer = workspaces.trainer(tmp_path / "packed", rule, mixing={"layout": "padding-free"}, **NO_DROPOUT)
    trainer.train()
    assert trainer.tokens[0] == trainer.tokens[1]
    assert trainer.tokens[2] == trainer.state.global_step  # one micro-batch a step
    assert_same_weights(padded, workspaces.weights(trainer))


def test_an_interrupted_step_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook, and `train()` again: the Trainer clears `.grad`, and nobody else what was captured."""
    trainer = workspaces.trainer(tmp_path, mixing={"layout": "mixed", "micro_batches": 4})
    real, left = trainer.compute_loss, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        assert trainer.ortho is not None
        left.append((len(trainer.ortho.task_gradients()), float(trainer.task_losses._own.sum())))
        if len(left) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert left[2][0] > 0
    assert left[2][1] > 0
    trainer.train()
    assert left[3] == (0, 0.0)


def test_tokens_are_counted_and_ranks_meet_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = workspaces.trainer(tmp_path, mixing={"launch_tokens": 0})
    apart: list[Any] = []
    monkeypatch.setattr(trainer.accelerator, "no_sync", lambda model: (apart.append(model), nullcontext())[1])
    trainer.train()
    real, padded, micro_batches = trainer.tokens
    assert len(apart) == micro_batches - trainer.state.global_step  # DDP reduces in the last backward of a step
    assert 0 < real == padded  # a launch that costs nothing: no padding at all
    assert micro_batches > trainer.state.global_step


def test_every_trainable_parameter_changes_and_no_other(tmp_path: Path) -> None:
    trainer = workspaces.trainer(tmp_path)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(before[name], parameter) != parameter.requires_grad, name
    assert {n.split(".")[0] for n, p in trainer.model.named_parameters() if p.requires_grad} == {"encoder", "heads"}


def test_a_loss_is_the_mean_over_the_tasks_own_rows_times_its_weight(tmp_path: Path) -> None:
    """Whatever the cut, the gradient of a step is that of `Σ_t w_t · mean over the task's rows`."""
    tasks = [dict(task) for task in workspaces.config().model_dump(exclude_none=True)["tasks"]]
    tasks[1]["weight"] = 3.0
    sections = {
        "tasks": tasks,
        "mixing": {"micro_batches": 3, "quota": "temperature", "rows_per_task": 5},
        **NO_DROPOUT,
    }
    trainer = workspaces.trainer(tmp_path, JOINT, **sections)
    loader = trainer.get_train_dataloader()
    samples, _ = trainer.get_batch_samples(iter(loader), 1, "cpu")
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.current_gradient_accumulation_steps = 1
    (sample,) = samples
    assert len(sample["micro_batches"]) == 3
    trainer.training_step(trainer.model, sample)
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    expected_loss(trainer, sample["micro_batches"]).backward()
    for name, gradient in found.items():
        parameter = trainer.model.get_parameter(name)
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    assert len(found) == len(workspaces.weights(trainer))


def expected_loss(trainer: OrthoTrainer, samples: list[dict[str, Any]]) -> Tensor:
    """Literally: the rows of the whole step, task by task."""
    rows: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for sample in samples:
        outputs = trainer.model(sample["inputs"], torch.tensor(sample["task_ids"]))
        for task, out in outputs.items():
            targets = sample["targets"][torch.tensor(sample["task_ids"]) == task]
            rows[task].append(trainer.card.tasks[task].row_losses(out, targets))
    means = [torch.cat(rows[task]).mean() for task in rows]
    return means[0] + 3.0 * means[1] + means[2]


def test_logs_hold_task_losses_and_conflicts(tmp_path: Path) -> None:
    trainer = workspaces.trainer(tmp_path)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert math.isclose(entry["loss"], sum(entry[f"loss/{name}"] for name in TASKS), rel_tol=1e-4)
        assert 0 <= entry["conflict/negative_share"] <= 1
        assert -1 <= entry["conflict/topic-pair"] <= 1
        assert entry["conflict/removed"] >= 0
        assert math.isclose(math.prod(entry[f"size/{name}"] for name in TASKS), 1, rel_tol=1e-5)
    assert all(entry["conflict_error/topic-pair"] > 0 for entry in logs[1:])
    assert all(math.isclose(sum(e[f"pace/{name}"] for name in TASKS), 3, rel_tol=1e-6) for e in logs[1:])


def test_tensorboard_gets_them_too(tmp_path: Path) -> None:
    workspaces.trainer(tmp_path, training={"tensorboard": True}).train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = next((tmp_path / "logs").rglob("events.*"))
    read = EventAccumulator(str(events))
    read.Reload()
    assert "train/conflict/removed" in read.Tags()["scalars"]


def test_metrics_of_every_task_and_their_mean(tmp_path: Path) -> None:
    trainer = workspaces.trainer(tmp_path, training={"steps": 60})
    trainer.train()
    scores = trainer.evaluate()
    assert scores["eval_average"] == pytest.approx(sum(scores[f"eval_{n}"] for n in TASKS) / 3)
    assert scores["eval_topic"] == scores["eval_topic/accuracy"] > 0.6
    assert scores["eval_pair"] == scores["eval_pair/f1"] > 0.7
    assert scores["eval_score"] == pytest.approx((scores["eval_score/pearson"] + scores["eval_score/spearman"]) / 2)
    assert scores["eval_score"] > 0.4


def test_the_best_checkpoint_is_kept_and_training_stops_early(tmp_path: Path) -> None:
    settings = {"steps": 40, "eval_every": 2, "selection": "best", "patience": 2, "learning_rate": 0.05}
    trainer = workspaces.trainer(tmp_path, training=settings)
    trainer.train()
    scores = [(e["step"], e["eval_average"]) for e in trainer.state.log_history if "eval_average" in e]
    best_step, best = max(scores, key=lambda entry: entry[1])
    assert trainer.state.global_step < 40
    assert Path(str(trainer.state.best_model_checkpoint)).name == f"checkpoint-{best_step}"
    assert trainer.evaluate()["eval_average"] == pytest.approx(best)


class StopAt(Silent):
    """Asks to stop after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int) -> None:
        self.stop_requested = done >= self.at


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Same final adapter bytes, same predictions: data order, dropout and visit orders included."""
    space = workspaces.workspace(lora={"dropout": 0.2}, mixing={"micro_batches": 2})
    whole = train_run(Run(ORTHO, TASKS, 3, tmp_path / "whole"), space)
    with pytest.raises(Stopped):
        train_run(Run(ORTHO, TASKS, 3, tmp_path / "cut"), space, StopAt(3))
    cut = train_run(Run(ORTHO, TASKS, 3, tmp_path / "cut"), space)
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert cut.metrics == whole.metrics
    assert cut.conflict == whole.conflict


def test_single_sees_the_rows_that_joint_sees(tmp_path: Path) -> None:
    def rows(names: tuple[str, ...], task: str) -> list[list[int]]:
        trainer = workspaces.trainer(tmp_path / str(len(names)), JOINT, names)
        sampler = trainer.get_train_dataloader().batch_sampler
        index = names.index(task)
        return [[row for t, row in sampler.step(step)[0].rows if t == index] for step in range(30)]  # type: ignore[union-attr]

    assert rows(TASKS, "pair") == rows(("pair",), "pair")


def test_a_head_starts_the_same_alone_and_with_others(tmp_path: Path) -> None:
    together = workspaces.trainer(tmp_path / "a", JOINT)
    alone = workspaces.trainer(tmp_path / "b", JOINT, ("score",))
    assert torch.equal(together._bare_model().head(2).linear.weight, alone._bare_model().head(0).linear.weight)


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    """The masters stay float32; only the products round (2^-8), so losses agree to a few per cent."""
    exact = workspaces.trainer(tmp_path / "a", training={"steps": 4})
    rounded = workspaces.trainer(tmp_path / "b", dtype="bfloat16", training={"steps": 4})
    losses = [trainer.train().training_loss for trainer in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert all(p.dtype == torch.float32 for p in workspaces.weights(rounded).values())
    assert next(iter(rounded.model.parameters())).dtype == torch.bfloat16


def test_gradient_checkpointing_by_ordinary_arguments(tmp_path: Path) -> None:
    plain = trained(tmp_path / "a", ORTHO, **NO_DROPOUT)
    for reentrant in (False, True):
        arguments = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
        out = tmp_path / str(reentrant)
        assert largest_difference(plain, trained(out, ORTHO, training={"arguments": arguments}, **NO_DROPOUT)) < 1e-5


@pytest.mark.parametrize("steps", [5, 6])
def test_a_finished_run_is_not_trained_on(tmp_path: Path, steps: int) -> None:
    """Killed after its last checkpoint and before its result: the Trainer alone would take one step more."""
    training = {"steps": steps, "save_every": steps}
    first = workspaces.trainer(tmp_path, training=training)
    first.train()
    assert first.state.global_step == steps
    assert steps % len(first.get_train_dataloader()), "the last step ends an epoch: the test proves nothing"
    again = workspaces.trainer(tmp_path, training=training)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / f"checkpoint-{steps}"))
    assert again.state.global_step == steps
    assert largest_difference(workspaces.weights(first), workspaces.weights(again)) == 0
    assert again.conflicts.report() == first.conflicts.report()
