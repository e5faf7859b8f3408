"""Balance by signal: the noise-free parts of the tasks' gradients get one length in each block.

This library's own. A gradient's length is that of its signal and of its noise together, so `balanced` gives a task
with noisy gradients a smaller share of signal than the others. Two halves of a step tell the two apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ortholora.engine.halves import whole
from ortholora.engine.rules.balanced import lengths
from ortholora.engine.rules.base import RuleContext
from ortholora.engine.rules.noise_free import half_agreement, signal_share


class BalancedSignal:
    """Give every task's signal the mean length in each block: `g = L̄ Σ_t g_t / s_t` with `s_t = ‖g_t‖ √q_t`.

    `q_t = max(share, floor)` is the share of `‖g_t‖²` that is signal, by `signal_share`, from a running mean of the
    agreement of the task's two halves: `r̄ ← β r̄ + (1 − β) r` (`half_agreement`). It starts at 1, where the rule is
    `balanced`, so what is not determined yet is shrunk towards the raw length. `L̄` is the mean of the `s_t` that are
    there. One task, or tasks of equal lengths and shares, get the plain sum.

    Args:
        beta: β in (0, 1). A cross product of one step is noisy itself.
        floor: In (0, 1]. No share counts as less, so no task gets more than `1 / √floor` times what it would get
            without noise. 1 is `balanced`.

    Raises:
        ValueError: An argument is out of range.
    """

    scale_free_per_task = True
    halves = True

    def __init__(self, beta: float = 0.95, floor: float = 0.1) -> None:
        if not (0 < beta < 1 and 0 < floor <= 1):
            raise ValueError(f"beta should be in (0, 1), and floor in (0, 1]. Found beta={beta!r}, floor={floor!r}.")
        self.beta: float = float(beta)
        self.floor: float = float(floor)
        self._agreement: Tensor | None = None  # r̄ [N, T]

    def __repr__(self) -> str:
        return f"BalancedSignal(beta={self.beta:g}, floor={self.floor:g})"

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return the weights `L̄ / s_t` as `[N, T]`."""
        share = signal_share(self._moved(gram, context), context).clamp_min(self.floor)
        signal = lengths(whole(gram)) * share.sqrt()
        there = signal > 0
        mean = signal.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
        return torch.where(there, mean / torch.where(there, signal, 1.0), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The arguments and the running agreement of every block and task."""
        kept = None if self._agreement is None else self._agreement.clone()
        return {"beta": self.beta, "floor": self.floor, "agreement": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: The state is that of other arguments.
        """
        if (state["beta"], state["floor"]) != (self.beta, self.floor):
            found = f"beta={state['beta']:g}, floor={state['floor']:g}"
            raise ValueError(f"The state should be for {self!r}. Found one for {found}.")
        self._agreement = None if state["agreement"] is None else state["agreement"].clone()

    def _moved(self, gram: Tensor, context: RuleContext) -> Tensor:
        found, known = half_agreement(gram, context)
        before = torch.ones_like(found) if self._agreement is None else self._agreement.to(gram.device)
        self._agreement = torch.where(known, self.beta * before + (1 - self.beta) * found, before)
        return self._agreement
