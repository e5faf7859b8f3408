"""AdaTask: every task's gradient divided, element by element, by its own running RMS.

Yang et al., "AdaTask: A Task-aware Adaptive Learning Rate Approach to Multi-task Learning", AAAI 2023, arXiv
2211.15055.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.rules.base import RuleContext


class AdaTask:
    """Sum the task gradients after each was divided by its own running RMS: `g = s ∘ Σ_t g_t / d_t`.

    `v_t ← β v_t + (1 − β) g_t²`, corrected for its start at zero, and `d_t = √v̂_t + ε ρ_t` with `ρ_t` the mean square
    root of `v̂_t` over the matrix. `s = ρ̄ · mean_t(d_t / ρ_t)` with `ρ̄ = mean_t ρ_t` brings length and shape back. Means
    are over the tasks with a gradient in the matrix, so that one task, or tasks of equal RMS, get the plain sum.

    The paper's update is `Σ_t m̂_t / (√v̂_t + ε)`. Adam after this rule divides by the running RMS of what the rule
    writes, which takes `s` out again, up to the change of `s` within Adam's memory.

    Args:
        beta: β in (0, 1).
        eps: ε > 0, relative to the task's own scale, so that no result depends on it.

    Raises:
        ValueError: An argument is out of range.
    """

    scale_free_per_task = True

    def __init__(self, beta: float = 0.99, eps: float = 1e-8) -> None:
        self.precondition: RunningRms = RunningRms(beta, eps)

    def __repr__(self) -> str:
        return f"AdaTask(beta={self.precondition.beta:g}, eps={self.precondition.eps:g})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the weights 1 `[N, T]`: everything was done before the Gram."""
        return gram.new_ones(gram.shape[:2])


class RunningRms:
    """The `Preconditioner` of `AdaTask`. State: `4 · T · (trainable LoRA elements)` bytes."""

    def __init__(self, beta: float, eps: float) -> None:
        if not 0 < beta < 1:
            raise ValueError(f"beta should be a decay in (0, 1). Found {beta!r}.")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps should be a positive number. Found {eps!r}.")
        self.beta: float = float(beta)
        self.eps: float = float(eps)
        self._squares: dict[int, Tensor] = {}  # [n, T, numel] float32, by shape
        self._seen: dict[int, Tensor] = {}  # [T] float64: steps that had rows of the task

    def transform(self, index: int, gradients: Tensor, present: Tensor, step: int) -> Tensor:
        """Return `s ∘ g_t / d_t`; see `AdaTask`."""
        squares = self._moved(index, gradients, present)
        correction = (1 - self.beta ** self._seen[index]).clamp_min(1 - self.beta).to(squares)
        rms = (squares / correction[:, None]).sqrt_()
        scale = rms.square().mean(2, keepdim=True).sqrt()  # ρ [n, T, 1]
        there = (scale > 0) & present.to(scale.device)[:, None]
        count = there.sum(1, keepdim=True)
        safe = torch.where(there, scale, 1.0)
        # Relative to ρ from here on, in place: numbers near 1 whatever the scale of the gradients.
        relative = rms.div_(safe).add_(self.eps)  # d / ρ
        mean = torch.where(there, relative, 0.0).sum(1, keepdim=True) / count.clamp_min(1)
        length = torch.where(there, scale, 0.0).sum(1, keepdim=True) / count.clamp_min(1)
        factors = length / safe * (mean / relative)
        # Exactly the plain gradient where nobody else is: the quotients above round.
        return gradients * torch.where(there & (count > 1), factors, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The arguments, and running squares and counts by shape."""
        squares = {index: value.clone() for index, value in self._squares.items()}
        seen = {index: value.clone() for index, value in self._seen.items()}
        return {"beta": self.beta, "eps": self.eps, "squares": squares, "seen": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if (state["beta"], state["eps"]) != (self.beta, self.eps):
            found = f"beta={state['beta']:g}, eps={state['eps']:g}"
            raise ValueError(f"The state should be for beta={self.beta:g}, eps={self.eps:g}. Found one for {found}.")
        self._squares = {index: value.clone() for index, value in state["squares"].items()}
        self._seen = {index: value.clone().cpu() for index, value in state["seen"].items()}

    def _moved(self, index: int, gradients: Tensor, present: Tensor) -> Tensor:
        """The running squares with this step in them; those of absent tasks as they were."""
        if index not in self._squares:
            self._squares[index] = torch.zeros_like(gradients)
            self._seen[index] = torch.zeros(len(present), dtype=torch.float64)
        squares = self._squares[index] = self._squares[index].to(gradients.device)
        self._seen[index] += present
        keep = torch.where(present, self.beta, 1.0).to(squares)[:, None]
        return squares.mul_(keep).add_(gradients.square().mul_(1 - keep))
