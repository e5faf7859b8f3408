"""Shares of the tasks that rules of the MGDA family move by steps: points of the simplex, block by block."""

from __future__ import annotations

import torch
from torch import Tensor


class Shares:
    """Shares `[N, T]` that add up to 1 and live across steps. Tasks that are not there keep theirs."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def among(self, there: Tensor) -> Tensor:
        """The shares of the tasks that are there `[N, T]` bool, scaled so that they add up to 1; 0 for the others.

        Equal shares at the start, and where only others had any.
        """
        if self._kept is None:
            self._kept = torch.full(there.shape, 1 / there.shape[1], device=there.device)
        self._kept = self._kept.to(there.device)
        share = self._kept * there
        total = share.sum(1, keepdim=True)
        equal = there / there.sum(1, keepdim=True).clamp_min(1)
        return torch.where(total > 0, share / torch.where(total > 0, total, 1.0), equal)

    def keep(self, share: Tensor, there: Tensor) -> None:
        """Remember new shares of the tasks that are there; together they keep what they had."""
        assert self._kept is not None
        total = (self._kept * there).sum(1, keepdim=True)
        self._kept = torch.where(there, share * total, self._kept)

    def state_dict(self) -> Tensor | None:
        """`[N, T]`, or None before the first step."""
        return None if self._kept is None else self._kept.clone()

    def load_state_dict(self, state: Tensor | None) -> None:
        """Continue where `state_dict()` was taken."""
        self._kept = None if state is None else state.clone()


def onto_simplex(values: Tensor, there: Tensor) -> Tensor:
    """The nearest point with `Σ = 1` and no negative entry, among the tasks that are there: `[N, T]` → `[N, T]`.

    Held, Wolfe and Crowder 1974: subtract θ and cut at 0, with θ from the sorted values.
    """
    lowest = torch.where(there, values, -1e30)
    ordered = lowest.sort(1, descending=True).values
    above = ordered.cumsum(1) - 1
    place = torch.arange(1, values.shape[1] + 1, device=values.device)
    last = (ordered * place > above).sum(1, keepdim=True).clamp_min(1)
    theta = above.gather(1, last - 1) / last
    return torch.where(there, (values - theta).clamp_min(0), 0.0)
