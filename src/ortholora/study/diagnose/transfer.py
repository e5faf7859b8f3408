"""What one step on a task alone does to the losses of all tasks: measured, and as the gradients predict it.

The step is taken with the gradient of one half of the held-out rows, and its effect is measured on the other half, and
the other way round: so no row is both learned from and measured on. It is the training's own optimizer, in its
present state, but without the momentum of the steps before, which were joint ones. So the step is as long as the share
that a gradient has in its own step (a tenth with Adam's usual β₁, once it is under way). Afterwards all is as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ortholora.study.diagnose.gradients import HeldOut, without_gradients
from ortholora.trainers.trainer import OrthoTrainer


@dataclass(frozen=True, eq=False)
class Transfer:
    """What a step of the adapter on task i does to task j.

    Attributes:
        changes: Change of j's mean loss in every micro-batch, `[M, i, j]`.
        predicted: To first order, `⟨Δ_i, ∇L_j⟩` with j's gradient on the rows that the step was not taken on, `[i, j]`.
    """

    changes: np.ndarray
    predicted: np.ndarray


def measure_transfer(held: HeldOut, halves: dict[str, Tensor]) -> Transfer:
    """Take a step on every task alone, and take it back.

    Args:
        held: The held-out rows.
        halves: Mean gradient over either half of the rows, of each LoRA matrix: `[2, T, *shape]`.
    """
    parameters = {name: p for name, p in held.trainer._bare_model().named_parameters() if name in halves}
    # Without capture, as after the steps: in half precision another order of products is another rounding.
    before = held.losses()
    changes = np.zeros((held.groups.count, held.tasks, held.tasks))
    predicted = np.zeros((2, held.tasks, held.tasks))
    for task, entry in enumerate(held.trainer.tasks):
        for half, other in ((0, 1), (1, 0)):
            gradients = {name: entry.data.spec.weight * values[half, task] for name, values in halves.items()}
            groups = list(held.groups.halves[other])
            with _stepped(held.trainer, parameters, gradients) as moved:
                changes[groups, task] = held.losses(groups) - before[groups]
            for name, change in moved.items():
                values = halves[name][other].flatten(1).double()
                predicted[half, task] += (values @ change.flatten().double()).numpy()
    return Transfer(changes, predicted.mean(0))


@contextmanager
def _stepped(
    trainer: OrthoTrainer, parameters: Mapping[str, Tensor], gradients: dict[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """The model after one step with these gradients; yields how far each parameter moved, on the host."""
    optimizer = _innermost(trainer.optimizer)
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    state = copy.deepcopy(optimizer.state_dict())
    with without_gradients(trainer._bare_model()):
        try:
            for name, p in parameters.items():
                p.grad = gradients[name].to(p)
            if trainer.args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(list(parameters.values()), trainer.args.max_grad_norm)
            _forget_momentum(optimizer)
            optimizer.step()
            yield {name: (p.detach() - weights[name]).float().cpu() for name, p in parameters.items()}
        finally:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(weights[name])
            optimizer.load_state_dict(state)


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside of accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _forget_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Leave no trace of earlier gradients but in the second moments, and step at the rate that is due (or the peak)."""
    for state in optimizer.state.values():
        for name in ("exp_avg", "momentum_buffer"):
            if isinstance(state.get(name), Tensor):
                state[name].zero_()
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] or group.get("initial_lr", 0.0)  # at the very start the warm-up's is zero
