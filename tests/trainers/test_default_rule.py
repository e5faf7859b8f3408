"""What trains where no rule is named, against plain `autograd.grad` of each task and the equation written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import language_workspaces
import workspaces
from ortholora.config.sections import RECOMMENDED_RULE
from ortholora.runs.method import Method

Losses = dict[int, Tensor]

TRAINING = {"steps": 4, "learning_rate": 0.01, "save_every": 0}


def weighted() -> dict[str, Any]:
    tasks = [dict(task) for task in workspaces.config().model_dump(exclude_none=True)["tasks"]]
    tasks[1]["weight"] = 3.0
    return {"tasks": tasks, "head_dropout": 0.0}


def by_task(twin: Any, inputs: Any) -> tuple[Losses, dict[str, Tensor]]:
    """Each task's mean loss over the step, and its gradient of every LoRA matrix `[T, *shape]`."""
    lora = {name: p for name, p in twin.model.named_parameters() if p.requires_grad and "lora_" in name}
    count = len(twin.tasks)
    losses: Losses = {}
    found = {name: torch.zeros(count, *p.shape) for name, p in lora.items()}
    for part in twin.micro_batches_of(inputs):
        sums = twin.model.sum_losses(twin.model(part["inputs"], part["task_ids"]), part)
        for task in set(torch.as_tensor(part["task_ids"]).flatten().tolist()):
            loss = sums[task] / float(part["weights"][task])
            losses[task] = losses.get(task, torch.zeros(())) + loss.detach()
            for name, g in zip(lora, torch.autograd.grad(loss, list(lora.values()), retain_graph=True), strict=True):
                found[name][task] += g
    return losses, found


def by_hand(history: list[Losses], gradients: Tensor, weights: list[float]) -> Tensor:
    """`Σ_t (w_t / w̄) L̄ r_t² g_t / ‖g_t‖`, where tasks that left are no more."""
    there = sorted(history[-1])
    relative = {t: history[-1][t] / torch.stack([losses[t] for losses in history[:10]]).mean() for t in there}
    own = {t: weights[t] * gradients[t] for t in there}
    if not any(bool(g.any()) for g in own.values()):
        return torch.zeros_like(gradients[0])
    length = sum(own[t].norm() for t in there) / len(there)
    rate = sum(relative.values()) / len(there)
    weight = sum(weights[t] for t in there) / len(there)
    return sum(
        (weights[t] / weight * length * (relative[t] / rate) ** 2 * own[t] / own[t].norm() for t in there),
        start=torch.zeros(()),
    )


@pytest.mark.parametrize(
    ("space", "sections"),
    [
        (workspaces, {**weighted(), "mixing": {"layout": "by-length", "micro_batches": 3}}),
        (workspaces, {**weighted(), "training": {**TRAINING, "steps": 6, "eval_every": 2, "patience_per_task": 1}}),
        (language_workspaces, {"mixing": {"layout": "padding-free"}}),
    ],
    ids=["weights and micro-batches", "a task leaves", "language"],
)
def test_every_step_is_the_equation(
    space: Any, sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"training": TRAINING, **sections}
    made = space.trainer(tmp_path / "run", Method("default", RECOMMENDED_RULE), **sections)
    twin = space.trainer(tmp_path / "twin", Method("joint"), **sections)
    weights = [task.data.spec.weight for task in made.tasks]
    history: list[Losses] = []
    own_step, own_ask = made.training_step, made._ask

    def step(model: Any, inputs: Any, items: Any = None) -> Tensor:
        trained = workspaces.weights(made)
        with torch.no_grad():
            for name, parameter in twin.model.named_parameters():
                if name in trained:
                    parameter.copy_(trained[name])
        losses, gradients = by_task(twin, inputs)
        history.append(losses)
        loss = own_step(model, inputs, items)
        for name, parameter in made.model.named_parameters():
            if name in gradients:
                expected = by_hand(history, gradients[name], weights)
                assert float((parameter.grad - expected).norm()) <= 1e-3 * float(expected.norm()) + 1e-8, name
        return loss

    def ask(prefix: str, parts: Any) -> dict[str, float]:
        done = float(made.state.global_step)  # topic gets worse and worse, the others better and better
        return own_ask(prefix, parts) | {f"{prefix}_topic": -done, f"{prefix}_pair": done, f"{prefix}_score": done}

    monkeypatch.setattr(made, "training_step", step)
    if "patience_per_task" in sections["training"]:
        monkeypatch.setattr(made, "_ask", ask)
    made.train()
    assert len(history) == made.state.global_step == sections["training"]["steps"]
    if "patience_per_task" in sections["training"]:
        assert made.patience.stopped == {"topic": 4}
        assert [sorted(losses) for losses in history[3:]] == [[0, 1, 2], [1, 2], [1, 2]]
