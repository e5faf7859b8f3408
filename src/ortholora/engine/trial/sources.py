"""Where sizes are as ambiguous as can be: which dimension of an output is the batch, if two are as long as that?

`nn.TransformerEncoder(batch_first=False)` returns `[S, B, d]`. With S = B its last layers agree with its outputs'
first dimension in every row, and both are positions. What the model reads tells: along the batch its rows come apart,
along positions attention mixes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ortholora.engine.trial.calls import Level
from ortholora.engine.trial.codes import Coded, Codes
from ortholora.engine.trial.passes import Reading, read, strays, tapped


class Sources:
    """What a model reads in one run: its inputs and its embeddings, along each of their first two dimensions.

    Args:
        codes: The batch's codes.
        probe: Where gradients end.
        inverse: The rows' gradients carry the inverse powers.
    """

    def __init__(self, codes: Codes, probe: Tensor, inverse: bool) -> None:
        self._codes, self._probe, self._inverse = codes, probe, inverse
        self.readings: list[list[Reading]] = []

    @contextmanager
    def watched(self, level: Level) -> Iterator[Level]:
        """The same call with its sources watched."""
        args = tuple(self._tap("", value) for value in level.args)
        kwargs = {name: self._tap(name, value) for name, value in level.kwargs.items()}
        words = [m for m in level.module.modules() if isinstance(m, nn.Embedding)]
        hooks = [m.register_forward_hook(lambda module, inputs, output: self._tap("", output)) for m in words]
        try:
            yield Level(level.module, args, kwargs, level.autocast)
        finally:
            for hook in hooks:
                hook.remove()

    def _tap(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 3 or "mask" in name:
            return value
        along = [self._codes.of_dimension(value.shape[dim]) for dim in (0, 1)]
        if None in along or not torch.is_grad_enabled():
            return value
        return tapped(value.detach(), self._probe, lambda delta: self._take(delta, along))

    def _take(self, delta: Tensor, along: list[Coded | None]) -> None:
        turned = (delta, delta.transpose(0, 1))
        pairs = [(part, coded) for part, coded in zip(turned, along, strict=True) if coded]
        self.readings.append([read(part, coded.inverse() if self._inverse else coded) for part, coded in pairs])


def is_ambiguous(gradient: Tensor, codes: Codes) -> bool:
    """Whether an output's second dimension could be the batch as well as its first."""
    return gradient.dim() > 1 and gradient.shape[0] == gradient.shape[1] and codes.kind != "task"


def first_is_the_batch(inverse: Sources, coded: Sources) -> bool:
    """Whether something that the model reads comes apart along the outputs' first dimension; True if it reads none."""
    pairs = list(zip(inverse.readings, coded.readings, strict=True))
    kept = [any(not strays(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs]
    return not kept or any(kept)
