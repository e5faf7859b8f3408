"""FAMO: weights under which all tasks' losses fall at the same rate.

Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, arXiv 2306.03792, Algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.balanced import lengths
from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.positive_losses import PositiveLosses


class Famo:
    """Weigh the tasks' log losses by `z = softmax(ξ)`: the update is `Σ_t w_t g_t` with `w_t ∝ z_t / L_t`.

    After the model's step, `δ = J(z)ᵀ (log L(θ_k) − log L(θ_{k+1}))` with J the Jacobian of the softmax, and ξ takes a
    step against `δ + γ ξ`: a task whose loss falls faster than the others' loses weight. That step is Adam's, as in
    the paper's Algorithm 2; a plain step of the same β would hardly move ξ. Lower bounds of the losses are 0.

    The paper takes `L(θ_{k+1})` on the rows of step k, which costs another forward. Here it is the loss of the next
    step's rows, and ξ moves before that step's weights are taken. What two batches differ by enters δ with opposite
    signs in successive steps, so it does not add up, but it makes δ noisy and thus Adam's steps small.

    Weights add up to the number of tasks with a gradient in the block; the paper's add up to 1. So equal tasks get
    `sum`. Tasks without a loss in a step take no part in it, and their ξ stays.

    Args:
        beta: β > 0, the step size of ξ.
        gamma: γ ≥ 0, its decay.

    Raises:
        ValueError: An argument is out of range.
    """

    scale_free_per_task = True
    keeps_weights = True
    needs_losses = True

    def __init__(self, beta: float = 0.025, gamma: float = 0.001) -> None:
        if not (math.isfinite(beta) and beta > 0 and math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"beta should be above 0, and gamma at least 0. Found beta={beta!r}, gamma={gamma!r}.")
        self.beta: float = float(beta)
        self.gamma: float = float(gamma)
        self._losses = PositiveLosses("famo")
        # ξ, Adam's two running means, and each task's number of steps: [4, T] float64
        self._adam: Tensor | None = None
        self._before: Tensor | None = None  # log L [T] of each task's last step; NaN before its first

    def __repr__(self) -> str:
        return f"Famo(beta={self.beta:g}, gamma={self.gamma:g})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return weights `[N, T]`."""
        log_losses = self._losses.read(context).log()
        logits = self._moved(log_losses)
        # log(z / L) up to a constant; -inf leaves out what has no loss, or no gradient in the block.
        scores = torch.where(log_losses.isnan(), -torch.inf, logits - log_losses).to(gram.device)
        there = lengths(gram) > 0
        share = torch.softmax(scores.masked_fill(~there, -torch.inf), 1).nan_to_num(0.0)
        return (there.sum(1, keepdim=True) * share).to(gram.dtype)

    def state_dict(self) -> dict[str, Any]:
        """The arguments, ξ, and the losses it was last compared with."""
        state = None if self._adam is None or self._before is None else [self._adam.clone(), self._before.clone()]
        return {"beta": self.beta, "gamma": self.gamma, "state": state, "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if (state["beta"], state["gamma"]) != (self.beta, self.gamma):
            found = f"beta={state['beta']:g}, gamma={state['gamma']:g}"
            raise ValueError(f"The state should be for {self!r}. Found one for {found}.")
        self._adam, self._before = (None, None) if state["state"] is None else (t.clone() for t in state["state"])
        self._losses.load_state_dict(state["losses"])

    def _moved(self, log_losses: Tensor) -> Tensor:
        """ξ after what the last step brought."""
        if self._adam is None or self._before is None:
            self._adam, self._before = log_losses.new_zeros(4, len(log_losses)), log_losses
            return self._adam[0]
        fell = self._before - log_losses
        moves = ~fell.isnan()
        moves &= moves.sum() > 1  # whoever is absent waits, and whoever has nobody to be compared with
        fell = fell.nan_to_num(0.0)
        z = torch.softmax(self._adam[0].masked_fill(~moves, -torch.inf), 0).nan_to_num(0.0)
        delta = z * (fell - (z * fell).sum())
        self._adam = torch.where(
            moves, adam_step(self._adam, delta + self.gamma * self._adam[0], self.beta), self._adam
        )
        self._before = torch.where(log_losses.isnan(), self._before, log_losses)
        return self._adam[0]


def adam_step(state: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """One step of Adam with its usual constants, each number on its own clock: `[4, T]`, `[T]` → `[4, T]`.

    By hand, because an optimizer of torch would call the hooks that are set on all optimizers.
    """
    values, mean, square, steps = state
    steps = steps + 1
    mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
    slope = (mean / (1 - 0.9**steps)) / ((square / (1 - 0.999**steps)).sqrt() + 1e-8)
    return torch.stack([values - rate * slope, mean, square, steps])
