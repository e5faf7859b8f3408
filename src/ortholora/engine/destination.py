"""Where a backward takes the gradient of a weight, and what it must not do twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ortholora.errors import CaptureError


def destination(node: Any) -> Literal["grad", "caller", "nobody"]:
    """Where the running backward takes the gradient that it computes for a parameter.

    Only what arrives in `.grad` is a task gradient. `torch.autograd.grad(loss, x)` runs through the same layers on its
    way to `x`, and `loss.backward(inputs=...)` may leave a parameter out.

    Args:
        node: The parameter's `AccumulateGrad` node.

    Returns:
        `grad`: it is added to `.grad`. `caller`: `torch.autograd.grad(loss, parameter)` returns it. `nobody`: it is
        not asked for.
    """
    try:
        return "grad" if torch._C._will_engine_execute_node(node) else "nobody"
    except RuntimeError:  # torch refuses to answer for a leaf that `autograd.grad` was asked for
        return "caller"


def destination_of(parameter: Tensor) -> Literal["grad", "caller", "nobody"]:
    """The same for a parameter, inside a hook on it."""
    return destination(torch.autograd.graph.get_gradient_edge(parameter).node)


def once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """`once_differentiable`, with an error that names the layer and the way out. The context must have a `slot`."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, delta: Tensor) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, delta)
        # create_graph=True: the results may be used, but not differentiated.
        with torch.no_grad():
            results = backward(ctx, delta)
        return tuple(
            result if result is None else _Once.apply(result.detach().requires_grad_(), ctx.slot.matrix.name)
            for result in results
        )

    return wrapped


class _Once(torch.autograd.Function):
    """The identity, whose backward is refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None]:
        raise CaptureError(
            f"The gradient that went through the layer of {ctx.name} was differentiated once more",
            expected="losses whose gradient is taken once",
            found="a loss that contains a gradient (create_graph=True; a gradient penalty, say): what it adds to the "
            "gradients of the LoRA matrices cannot be told apart by task",
            todo="leave that loss out, or train it with plain PEFT after ortho.detach()",
        )
