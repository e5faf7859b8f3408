"""Joint training: the plain sum of the task gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine.rules.base import RuleContext


class Sum:
    """Weight 1 for every task: `g = Σ_t g_t`, exactly joint training."""

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        """Return ones `[N, T]`."""
        return torch.ones(gram.shape[:2], dtype=gram.dtype, device=gram.device)
