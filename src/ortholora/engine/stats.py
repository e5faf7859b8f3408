"""What happened in one resolve. Holds tensors and computes on demand: cheap enough to leave on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepStats:
    """The conflicts of one optimizer step and what the rule did about them.

    N blocks, T tasks; tensors stay on the model's device until you ask for numbers.

    Attributes:
        tasks: Names of the tasks.
        blocks: Names of the blocks.
        gram: `[N, T, T]` inner products of the task gradients (mean over ranks). A block whose inner products float32
            cannot hold has those of its gradients times a power of two.
        weights: `[N, T]` weights of the current task gradients in the update.
        combination: `[N, T, T]` coefficients of each task's own replacement, where the rule gave them.
        present: `[T]` bool: tasks with rows in this step.
    """

    tasks: tuple[str, ...]
    blocks: tuple[str, ...]
    gram: Tensor
    weights: Tensor
    combination: Tensor | None
    present: Tensor

    @cached_property
    def cosines(self) -> Tensor:
        """`[N, T, T]` cosines between task gradients; 0 where a gradient is zero."""
        return cosines(self.gram)

    @cached_property
    def conflicts(self) -> Tensor:
        """`[N, T, T]` bool: the pair's gradients point against each other in this block."""
        return self.gram < 0

    @cached_property
    def conflict_counts(self) -> Tensor:
        """`[T, T]` number of blocks in which the pair conflicts. One small batch: mostly a coin flip."""
        return self.conflicts.sum(0)

    @cached_property
    def total_cosines(self) -> Tensor:
        """`[T, T]` cosines of the whole gradient vectors."""
        return cosines(self.gram.sum(0, keepdim=True))[0]

    @cached_property
    def removed(self) -> Tensor:
        """`[N]` length of what projection took from (or added to) the sum of the scaled gradients, relative to it.

        `‖Σ_t (b_t − w_t) g_t‖ / ‖Σ_t b_t g_t‖` with `b_t` as in `scales`, from the Gram alone; 0 where the sum is zero.
        So it is 0 for a rule that gave weights: those scale, and nothing is known of pairs.
        """
        return self._relative_length(self.scales - self.weights, self.scales)

    @cached_property
    def rescaled(self) -> Tensor:
        """`[N]` length of what scaling alone changed of the plain sum, relative to it.

        `‖Σ_t (1 − b_t) g_t‖ / ‖Σ_t g_t‖` with `b_t` as in `scales`. 0 for `sum` and `ortho`. 1 for a rule that writes
        running means: nothing of the sum is left.
        """
        plain = torch.ones_like(self.scales)
        return self._relative_length(plain - self.scales, plain)

    @property
    def scales(self) -> Tensor:
        """`[N, T]`: the factor `b_t` of each task's gradient before projection; its weight if nothing is projected."""
        return self.weights if self.combination is None else self.combination.diagonal(dim1=1, dim2=2)

    def _relative_length(self, part: Tensor, whole: Tensor) -> Tensor:
        squares = (torch.einsum("ns,nst,nt->n", w, self.gram, w).clamp_min(0) for w in (part, whole))
        return _ratio(*squares).sqrt()

    @cached_property
    def removed_pairs(self) -> Tensor | None:
        """`[N, T, T]`: entry i, j is the length of the multiple of `g_j` removed from `g_i`, over `‖g_i‖`.

        Where the rule balances first, both are of the balanced gradients.

        None where the rule gave weights only.
        """
        if self.combination is None:
            return None
        own = self.combination.diagonal(dim1=1, dim2=2)
        off = (self.combination - torch.diag_embed(own)) / torch.where(own == 0, 1.0, own).unsqueeze(2)
        squared = self.gram.diagonal(dim1=1, dim2=2)
        return off.abs() * _ratio(squared.unsqueeze(1), squared.unsqueeze(2)).sqrt()


def cosines(gram: Tensor) -> Tensor:
    """Cosines `[..., T, T]` of a Gram `[..., T, T]`; 0 for zero gradients."""
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scaled = gram / torch.where(norm > 0, norm, torch.ones_like(norm)).unsqueeze(-1)
    return scaled / torch.where(norm > 0, norm, torch.ones_like(norm)).unsqueeze(-2)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    safe = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
    return torch.where(denominator > 0, numerator / safe, torch.zeros_like(denominator))
