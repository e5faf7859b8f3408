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

    After the model's step, `δ = J(z)ᵀ (log L(θ_k) − log L(θ_{k+1}))`, `ξ ← ξ − β (δ + γ ξ)` with J the Jacobian of
    the softmax: a task whose loss falls faster than the others' loses weight.

    The paper takes `L(θ_{k+1})` on the rows of step k, which costs another forward. Here it is the loss of the next
    step's rows, and the update of ξ comes before that step's weights. What two batches differ by enters δ with
    opposite signs in successive steps, so it does not add up. ξ is updated by plain gradient steps, as in Algorithm 1
    (the official code uses Adam), and no lower bounds are subtracted from the losses.

    Weights add up to the number of tasks with a gradient in the block; the paper's add up to 1. So equal tasks get
    `sum`. Tasks without a loss in a step take no part in it, and their ξ stays.

    Args:
        beta: β > 0, the step size of ξ.
        gamma: γ ≥ 0, its decay.

    Raises:
        ValueError: An argument is out of range.
    """

    scale_free_per_task = True
    needs_losses = True

    def __init__(self, beta: float = 0.025, gamma: float = 0.001) -> None:
        if not (math.isfinite(beta) and beta > 0 and math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"beta should be above 0, and gamma at least 0. Found beta={beta!r}, gamma={gamma!r}.")
        self.beta, self.gamma = float(beta), float(gamma)
        self._losses = PositiveLosses("famo")
        self._logits: Tensor | None = None  # ξ [T] float64
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
        state = None if self._logits is None or self._before is None else [self._logits.clone(), self._before.clone()]
        return {"beta": self.beta, "gamma": self.gamma, "state": state, "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if (state["beta"], state["gamma"]) != (self.beta, self.gamma):
            found = f"beta={state['beta']:g}, gamma={state['gamma']:g}"
            raise ValueError(f"The state should be for {self!r}. Found one for {found}.")
        self._logits, self._before = (None, None) if state["state"] is None else (t.clone() for t in state["state"])
        self._losses.load_state_dict(state["losses"])

    def _moved(self, log_losses: Tensor) -> Tensor:
        """ξ after what the last step brought."""
        if self._logits is None or self._before is None:
            self._logits, self._before = torch.zeros_like(log_losses), log_losses
            return self._logits
        fell = self._before - log_losses
        moves = ~fell.isnan()
        fell = fell.nan_to_num(0.0)
        z = torch.softmax(self._logits.masked_fill(~moves, -torch.inf), 0).nan_to_num(0.0)
        delta = z * (fell - (z * fell).sum())
        self._logits = torch.where(moves, self._logits - self.beta * (delta + self.gamma * self._logits), self._logits)
        self._before = torch.where(log_losses.isnan(), self._before, log_losses)
        return self._logits
