"""One backward, every task's gradient: an autograd Function in place of a LoRA matrix's product.

A Function and not a hook: it survives activation checkpointing (reentrant or not), its backward is
called once, and what it saves is what `nn.Linear` would have saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ortholora.engine.behind import Behind
from ortholora.engine.buffers import Slot
from ortholora.engine.destination import destination, destination_of, once
from ortholora.engine.grouping import Grouping
from ortholora.engine.sharded import refuse_task_pure
from ortholora.errors import CaptureError

if TYPE_CHECKING:
    from ortholora.engine.trial.passes import Pass


def not_compiled(function: Callable[..., Any]) -> Any:
    """Let `torch.compile` run a function eagerly between two graphs; `fullgraph=True` is refused with the reason."""
    reason = "ortholora captures task gradients here, which torch.compile cannot trace: leave out fullgraph=True"
    try:
        return torch.compiler.disable(function, reason=reason)
    except TypeError:  # older torch knows no reason
        return torch.compiler.disable(function)


def exactly(dtype: torch.dtype, device: str) -> AbstractContextManager[None]:
    """Let products of this dtype run in it: a backward inside the user's autocast block must not cast them.

    Entering a context costs as much as a small product, so it is done only where it changes something.
    """
    casts = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != dtype
    return torch.autocast(device, enabled=False) if casts else nullcontext()


class CurrentBatch:
    """The micro-batch that is being run.

    Attributes:
        grouping: Its tasks; None outside `ortho.batch(...)`.
        note: Is told of every input of a layer in a mixed batch.
        trying: Stands in for the matrices while the model is tried out (`engine/trial`).
    """

    def __init__(self) -> None:
        self.grouping: Grouping | None = None
        self.note: Callable[[Slot, Tensor], None] | None = None
        self.trying: Pass | None = None
        self.behind: Behind = Behind()
        self.is_copy: bool = False  # of a copied model, to which nobody is attached

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the model takes along: nothing, and above all no open batch."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew, in a copy."""
        self.__init__()  # type: ignore[misc]
        self.is_copy = True

    @property
    def now(self) -> Grouping | None:
        """The grouping that a forward, or the gradient of a whole parameter, belongs to if it comes now."""
        return self.behind.grouping(self.grouping)


class _CaptureLinear(torch.autograd.Function):
    """`x Wᵀ + b` whose backward also writes the task gradients of W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Slot, grouping: Grouping | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slot, ctx.grouping = slot, grouping
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        with exactly(delta.dtype, delta.device.type):
            d_x = delta @ weight.to(delta.dtype) if ctx.needs_input_grad[0] else None
            d_weight = weight_gradient(ctx.slot, ctx.grouping, delta, x, ctx.next_functions[1][0], weight.dtype)
            d_bias = delta.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return d_x, d_weight, d_bias, None, None


def weight_gradient(
    slot: Slot, grouping: Grouping | None, delta: Tensor, x: Tensor, node: Any, dtype: torch.dtype
) -> Tensor | None:
    """The gradient of a matrix, captured on its way if `.grad` is where it goes.

    Args:
        slot: Where its task gradients go.
        grouping: Tasks of the forward.
        delta: Output gradients `[..., d]`.
        x: Inputs `[..., k]`.
        node: The parameter's `AccumulateGrad` node.
        dtype: Precision of the parameter.

    Returns:
        `[d, k]`, or None where nobody asked for it.

    Raises:
        CaptureError: The forward ran outside any batch.
    """
    to = destination(node)
    if to == "nobody":
        return None
    if to == "caller":
        return (delta.flatten(0, -2).T @ x.flatten(0, -2)).to(dtype)
    if grouping is None:
        raise outside_batch(slot.matrix.name)
    return slot.capture(grouping, delta, x).to(dtype)


def install(module: nn.Linear, slot: Slot, current: CurrentBatch) -> None:
    """Let a `lora_A` / `lora_B` module capture.

    Raises:
        CaptureError: Something else has replaced the module's forward already.
    """
    if "forward" in module.__dict__:
        raise _taken(slot.matrix.name)
    module.forward = functools.partial(_forward, module, slot, current)  # type: ignore[method-assign]


def _taken(name: str) -> CaptureError:
    return CaptureError(
        f"{name} cannot be captured",
        expected="a LoRA matrix that nobody else has taken over",
        found="one that was taken over already (by another OrthoLora, or by an offloading hook)",
        todo="call .detach() on the other OrthoLora first, or load the model without CPU / disk offload",
    )


def is_leftover(forward: object) -> bool:
    """Whether a module's replaced forward came along with a copy of an attached model."""
    return isinstance(forward, functools.partial) and forward.func is _forward and forward.args[2].is_copy


def uninstall(module: nn.Linear) -> None:
    """Give the module its own forward back."""
    module.__dict__.pop("forward", None)


@not_compiled
def _forward(module: nn.Linear, slot: Slot, current: CurrentBatch, x: Tensor) -> Tensor:
    if current.trying is not None:
        return current.trying.run(module, slot, x)
    if current.note is not None:
        current.note(slot, x)
    weight, bias = module.weight, module.bias
    records = torch.is_grad_enabled() and weight.requires_grad
    grouping = current.now if records else None
    # Outside a batch a training forward still runs (a reference forward, say), but its backward is an
    # error: those gradients would reach `.grad` and then be overwritten by resolve, in silence.
    if not records or (grouping is None and not module.training):
        return F.linear(x, weight, bias)
    if is_unusual(x):
        raise _unusual(x, slot.matrix.name)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # autocast leaves float64 alone
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if grouping is not None:
        slot.group.ran[slot.row] = True
    return _CaptureLinear.apply(x, weight, bias, slot, grouping)


def is_unusual(x: Tensor) -> bool:
    """Whether no autograd Function can take this call: a jagged input, or a transform of `torch.func` at work."""
    return x.is_nested or torch._C._are_functorch_transforms_active()


def _unusual(x: Tensor, name: str) -> CaptureError:
    jagged = "pass its values as one packed row [1, S], with token-level ids"
    transform = "use loss.backward(); for other gradients call ortho.detach(), or model.eval() outside of the batch"
    return CaptureError(
        f"{name} cannot be captured in this call",
        expected="an ordinary forward on plain tensors",
        found="a nested (jagged) tensor" if x.is_nested else "a transform of torch.func (grad, vmap, jvp, ...)",
        todo=jagged if x.is_nested else transform,
    )


def outside_batch(name: str) -> CaptureError:
    """The error for a backward whose task ids are unknown."""
    return CaptureError(
        f"A backward reached {name} without task ids",
        expected="forward and backward inside `with ortho.batch(task_ids):`",
        found="no batch was open when the layer ran",
        todo="put forward and backward inside one `with` block; use torch.no_grad() for "
        "reference forwards, or ortho.detach() to train without task gradients. (A copy of an attached model wants an "
        "OrthoLora of its own.)",
    )


class PureHook:
    """Takes the whole gradient of a parameter that no row-wise split exists for.

    A leaf hook sees the gradient before it is added to `.grad`, so neither accumulation nor DDP can mix
    it with anything else. Exact if the micro-batch holds one task.
    """

    def __init__(self, slot: Slot, current: CurrentBatch) -> None:
        self._slot, self._current = slot, current
        self._parameter: nn.Parameter | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def renew(self) -> None:
        """Hook the parameter as it is now (it may have been replaced since).

        Raises:
            CaptureError: It is sharded by FSDP2, or another OrthoLora has hooked it.
        """
        parameter = self._slot.matrix.parameter
        refuse_task_pure(self._slot.matrix)
        if parameter is not self._parameter:
            self.remove()
            if (
                parameter.requires_grad
            ):  # else nothing can be hooked; the watch says at the end of the step what happened
                _refuse_second_hook(parameter, self._slot.matrix.name)
                self._parameter = parameter
                self._handle = parameter.register_hook(self._take)

    def remove(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._parameter, self._handle = None, None

    def _take(self, gradient: Tensor) -> None:
        if self._parameter is None or destination_of(self._parameter) != "grad":
            return
        grouping = self._current.now
        if grouping is None:
            raise outside_batch(self._slot.matrix.name)
        assert grouping.pure  # mixed batches are refused before they run
        self._slot.add(grouping.tasks[0], gradient)


def _refuse_second_hook(parameter: nn.Parameter, name: str) -> None:
    hooks = getattr(parameter, "_backward_hooks", None) or {}
    if any(isinstance(getattr(hook, "__self__", None), PureHook) for hook in hooks.values()):
        raise _taken(name)
