"""Adding to bfloat16 buffers, many micro-batches in a step, without losing the small ones.

bfloat16 keeps eight bits. Of 256 equal micro-batches rounded to nearest, most of the last hundred vanish: each is less
than half of the last bit of the sum. So the sum is taken in float32 and rounded up or down by a threshold that moves
with the number of additions. Over the additions each of them counts by its size. The thresholds are the multiples of
the golden ratio, which lie evenly however one picks every n-th of them. They need no random numbers: a resumed run
is the uninterrupted one.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: 2^16 over the golden ratio: thresholds in the sixteen bits that float32 has and bfloat16 lacks.
_STRIDE = 40503


def add(target: Tensor, values: Tensor, additions: int) -> None:
    """`target += values`, in place.

    Args:
        target: Of any precision.
        values: Of the same shape.
        additions: How often this target was added to before, in this step.
    """
    if target.dtype != torch.bfloat16:
        target.add_(values)
        return
    total = target.float().add_(values)
    threshold = (additions + 1) * _STRIDE % 2**16
    rounded = total.view(torch.int32).add(threshold).bitwise_and_(-(2**16)).view(torch.float32)
    target.copy_(torch.where(total.isfinite(), rounded, total))
