"""One forward and backward of the model as it is, in which the captured layers only report their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ortholora.engine.buffers import Slot
from ortholora.engine.trial.codes import Coded, Codes

#: Random directions in which a unit's gradient is looked at: as good as keeping it whole, and small.
DIRECTIONS = 4
#: Of its own size, by which a unit's gradient may be off. Codes differ by a factor of two at least, and rounding in
#: half precision is a tenth of this.
TOLERANCE = 0.1
#: Units with less than this share of the largest gradient say nothing: padding, and what is left of zero.
FAINT = 1e-3


@dataclass(frozen=True)
class Reading:
    """What arrived at one call of a layer.

    Attributes:
        coded: Its units.
        sketch: `[U, DIRECTIONS]`.
        sizes: `[U]`.
        lead: Its leading dimensions.
    """

    coded: Coded
    sketch: Tensor
    sizes: Tensor
    lead: tuple[int, ...]

    def without_code(self) -> tuple[Tensor, Tensor]:
        """The sketch and the sizes as they would be if no unit had been multiplied by its power."""
        factors = self.coded.factors.to(self.sketch.device)
        return self.sketch / factors[:, None], self.sizes / factors


class Pass:
    """Stands in for the LoRA matrices while the model runs, and takes down what arrives at them.

    No parameter takes part: the layers compute with their detached weights, and all gradients end in `probe`.

    Args:
        codes: The batch's codes; None: nothing is taken down.
        device: The model's device.
        inverse: The rows' gradients carry the inverse powers.
    """

    def __init__(self, codes: Codes | None, device: torch.device, inverse: bool = False) -> None:
        self._codes, self._inverse = codes, inverse
        self.probe: Tensor = torch.zeros((), device=device, requires_grad=True)
        self.readings: dict[Slot, list[Reading]] = {}
        self.nodes: dict[Slot, list[Any]] = {}  # of the graph, for each call; none in what is recomputed

    def run(self, module: nn.Linear, slot: Slot, x: Tensor) -> Tensor:
        """The matrix's product.

        B is moved a little: it is zero at first, and would keep the gradient from A.
        """
        weight = module.weight.detach()
        if slot.matrix.role == "B":
            wave = torch.arange(weight.numel(), device=weight.device, dtype=torch.float32).cos()
            weight = weight + 0.01 * wave.view_as(weight).to(weight.dtype)
        y = F.linear(x, weight, None if module.bias is None else module.bias.detach())
        calls = self.nodes.setdefault(slot, [])
        if torch.is_grad_enabled():
            y = tapped(y, self.probe, partial(self._record, slot))
            if not in_backward():
                calls.append(y.grad_fn)
        return y

    def _record(self, slot: Slot, delta: Tensor) -> None:
        coded = None if self._codes is None else self._codes.of_layer(delta.shape[:-1])
        if coded is not None:
            code = coded.inverse() if self._inverse else coded
            self.readings.setdefault(slot, []).append(read(delta, code))


def in_backward() -> bool:
    """Whether the autograd engine runs this: a layer that is recomputed."""
    return torch._C._current_graph_task_id() != -1


def tapped(y: Tensor, probe: Tensor, show: Callable[[Tensor], None]) -> Tensor:
    """The same tensor; whatever gradient arrives at it is shown."""
    return _Tap.apply(y, probe, show)


def read(delta: Tensor, coded: Coded) -> Reading:
    """Take down a gradient."""
    sketch, sizes = sketched(delta, len(coded.factors))
    return Reading(coded, sketch, sizes, tuple(delta.shape[:-1]))


class _Tap(torch.autograd.Function):
    """The identity; its backward shows the gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, probe: Tensor, show: Callable[[Tensor], None]) -> Tensor:
        ctx.show = show
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.show(delta)
        return delta, delta.new_zeros((), dtype=torch.float32), None


def sketched(delta: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """A few random projections `[U, DIRECTIONS]` of every unit's gradient, and its length `[U]`. Linear."""
    delta = delta.detach().reshape(units, -1, delta.shape[-1] if delta.dim() > 1 else 1).float()
    generator = torch.Generator().manual_seed(1)
    across, along = (
        torch.randn(size, DIRECTIONS, generator=generator).to(delta.device) for size in (delta.shape[2], delta.shape[1])
    )
    return ((delta @ across) * along).sum(1), delta.flatten(1).norm(dim=1)


def strays(inverse: Reading, coded: Reading) -> bool:
    """Whether a unit's gradient was not multiplied by the unit's own power.

    Another unit's share, however small, is seen: where it is divided by a power of two in one of the runs, it is
    multiplied by the same in the other.
    """
    (first, sizes), (second, _) = inverse.without_code(), coded.without_code()
    tells = sizes > FAINT * sizes.max()
    return bool((tells & ~((second - first).norm(dim=1) <= TOLERANCE * sizes)).any())  # NaN strays


def speaks(readings: Sequence[Reading]) -> bool:
    """Whether any gradient arrived."""
    return any(bool(reading.sizes.any()) for reading in readings)
