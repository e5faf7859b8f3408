"""Whether a loss is a sum over the tasks: asked of its second derivatives.

Two calls of the model may be two texts of each row, or rows and the texts of all labels; their shapes are the same.
The loss of the first is a sum over rows, so that no row's gradient depends on another row's outputs. Contrastive losses
are found in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ortholora.engine.trial.codes import Coded
from ortholora.engine.trial.passes import FAINT, TOLERANCE, in_backward, sketched


@contextmanager
def before_backward(look: Callable[[Tensor], None]) -> Iterator[None]:
    """Show somebody each loss before its `backward()`.

    By replacing the method for a batch or two. A `TorchFunctionMode` would see the call, too, but `torch.compile` fails
    in one (torch 2.13).

    Args:
        look: Called with the loss.
    """
    original = Tensor.backward

    @functools.wraps(original)
    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        if not in_backward():  # else a part that a layer recomputes and differentiates by itself (Reformer's)
            look(self)
        original(self, *args, **kwargs)

    Tensor.backward = backward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.backward = original  # type: ignore[method-assign]


def mixes_rows(loss: Tensor, outputs: Sequence[tuple[Tensor, Coded]]) -> bool:
    """Whether the gradient of some task's rows depends on the outputs of another's.

    Args:
        loss: The loss, before its backward.
        outputs: What the model gave, and how it is divided into rows.

    Raises:
        RuntimeError: A part of the loss has no second derivative.
    """
    tensors = [output for output, _ in outputs]
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    used = [(*pair, g) for pair, g in zip(outputs, gradients, strict=True) if g is not None and g.requires_grad]
    if not used:
        return False  # linear
    tensors = [output for output, _, _ in used]
    generator = torch.Generator().manual_seed(2)
    directions = [(torch.rand(g.shape, generator=generator) + 0.5).to(g) for _, _, g in used]
    plain = [(g * u).sum() for (_, _, g), u in zip(used, directions, strict=True)]
    coded = [(g * coded.times(u)).sum() for (_, coded, g), u in zip(used, directions, strict=True)]
    first, second = (
        torch.autograd.grad(torch.stack(sums).sum(), tensors, retain_graph=True, allow_unused=True)
        for sums in (plain, coded)
    )
    return any(_differs(a, b, coded) for a, b, (_, coded, _) in zip(first, second, used, strict=True))


def _differs(plain: Tensor | None, coded: Tensor | None, code: Coded) -> bool:
    if plain is None or coded is None:
        return False
    before, sizes = sketched(plain, len(code.factors))
    after, _ = sketched(coded, len(code.factors))
    off = (after / code.factors.to(after.device)[:, None] - before).norm(dim=1)
    return bool(((sizes > FAINT * sizes.max()) & (off > TOLERANCE * sizes)).any())
