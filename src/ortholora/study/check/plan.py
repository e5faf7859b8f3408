"""How the steps of a training will be cut: looked up with the training's own sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ortholora.data.encoded import MicroBatch
from ortholora.data.mixing import StepSampler
from ortholora.trainers.trainer import OrthoTrainer

#: Most steps that are looked at.
LOOKED_AT = 50


@dataclass(frozen=True)
class Plan:
    """Means over the steps that were looked at.

    Attributes:
        layout: The planner's layout; what `auto` stands for.
        steps: Steps of the training.
        quota: Task → its rows in a step.
        passes: Task → how often the training sees each of its rows.
        micro_batches: Micro-batches of a step.
        tokens: Tokens of a step, without padding.
        padding: Share of what is computed that is padding.
        largest: Tokens of the largest micro-batch of all, padding included.
        work: What a step costs, in tokens: padded tokens, and for each micro-batch what a launch costs.
    """

    layout: str
    steps: int
    quota: dict[str, int]
    passes: dict[str, float]
    micro_batches: float
    tokens: float
    padding: float
    largest: int
    work: float


def plan_of(trainer: OrthoTrainer) -> Plan:
    """Look at steps that are spread over the whole training."""
    steps = trainer.args.max_steps
    found = costs_of(trainer, sorted({int(step) for step in np.linspace(0, steps - 1, min(steps, LOOKED_AT))}))
    padded = sum(cost.padded for cost in found)
    quota = {task.data.name: rows for task, rows in zip(trainer.tasks, trainer.quota, strict=True)}
    sizes = {task.data.name: len(task.train) for task in trainer.tasks}
    return Plan(
        layout=trainer.planner.layout,
        steps=steps,
        quota=quota,
        passes={name: steps * rows / sizes[name] for name, rows in quota.items()},
        micro_batches=float(np.mean([cost.micro_batches for cost in found])),
        tokens=float(np.mean([cost.tokens for cost in found])),
        padding=1 - sum(cost.tokens for cost in found) / padded,
        largest=max(cost.largest for cost in found),
        work=float(np.mean([cost.work for cost in found])),
    )


@dataclass(frozen=True)
class StepCost:
    """One step: its micro-batches, its tokens without and with padding, its largest micro-batch, its work."""

    micro_batches: int
    tokens: int
    padded: int
    largest: int
    work: float


def costs_of(trainer: OrthoTrainer, steps: Sequence[int]) -> list[StepCost]:
    """What some steps of a training cost."""
    sampler = trainer.get_train_dataloader().batch_sampler
    assert isinstance(sampler, StepSampler)
    return [_cost(trainer, sampler.step(step)) for step in steps]


def _cost(trainer: OrthoTrainer, micro_batches: Sequence[MicroBatch]) -> StepCost:
    planner = trainer.planner
    tokens, padded = [], []
    for micro_batch in micro_batches:
        lengths = np.asarray([trainer.tasks[task].train.lengths[row] for task, row in micro_batch.rows])
        longest = -(-int(lengths.max()) // planner.multiple) * planner.multiple
        tokens.append(int(lengths.sum()))
        padded.append(tokens[-1] if planner.layout == "padding-free" else len(lengths) * longest)
    work = sum(padded) + len(padded) * (planner.launch_tokens or 0.0)
    return StepCost(len(padded), sum(tokens), sum(padded), max(padded), work)
