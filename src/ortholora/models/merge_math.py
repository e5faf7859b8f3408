"""What merging makes of one weight: several tasks' updates `scaling · B A` → one.

The whole update is what is merged, never A and B each by itself: adapters that began with other A's have nothing in
common factor by factor, and `mean(B) mean(A)` is not the mean of `B A`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """A task's update of one weight, or the merged one.

    Attributes:
        a: `[r, k]`.
        b: `[d, r]`, with all scaling multiplied in.
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def delta(self) -> Tensor:
        """`B A [d, k]`."""
        return self.b @ self.a


def add(updates: Sequence[Update], scale: float) -> Update:
    """`scale · Σ_t B_t A_t`, exactly: the factors side by side, whose rank is the sum of the ranks.

    References: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, arXiv 2212.04089.
    """
    return Update(torch.cat([u.a for u in updates]), torch.cat([scale * u.b for u in updates], dim=1))


def threshold(deltas: Sequence[Tensor], density: float) -> float:
    """The smallest length among the share `density` of the largest values of a task's whole update.

    Args:
        deltas: The task's update of every weight.
        density: Share to keep; at least one value is.
    """
    lengths = np.concatenate([delta.abs().flatten().numpy() for delta in deltas])
    place = len(lengths) - max(1, round(density * len(lengths)))
    lengths.partition(place)
    return float(lengths[place])


def trim(delta: Tensor, least: float) -> Tensor:
    """Zero where a value is shorter than `least`."""
    return torch.where(delta.abs() >= least, delta, 0.0)


def elect(deltas: Sequence[Tensor]) -> Tensor:
    """TIES' last two steps, value by value: elect the sign of the sum; take the mean over the tasks that have it.

    References: Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708, algorithm 1.
    """
    stacked = torch.stack(list(deltas))
    agrees = (stacked.sign() == stacked.sum(0).sign()) & (stacked != 0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def drop(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """DARE: keep each value with probability `density`, and divide by it, so that the expectation stays.

    References: Yu et al., Language Models are Super Mario, ICML 2024, arXiv 2311.03099.
    """
    kept = torch.rand(delta.shape, generator=generator) < density
    return delta * kept / density


def nearest(delta: Tensor, rank: int) -> tuple[Update, float]:
    """The nearest matrix of a rank (Eckart and Young), by its singular values.

    Returns:
        Its factors, and the squared length of what it lacks.
    """
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    root = values[:rank].sqrt()
    return Update(root[:, None] * right[:rank], left[:, :rank] * root), float(values[rank:].square().sum())
