"""The fast path: a whole LoRA layer over a plain linear base in one autograd Function.

Against PEFT's own forward it writes the LoRA update straight into the base output, builds the input gradient
in one buffer, keeps nothing but `x` and the small `x Aᵀ`, and never copies activations to float32: with a
half-precision base, or under autocast, the LoRA products run in that precision (master weights and task
gradients stay float32). The general path of `capture.py` stays installed underneath and takes every call that
is not a plain training forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import layer as peft_lora
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ortholora.engine.behind import in_backward
from ortholora.engine.buffers import Slot
from ortholora.engine.capture import (
    CurrentBatch,
    exactly,
    is_unusual,
    not_compiled,
    outside_batch,
    weight_gradient,
)
from ortholora.engine.destination import once
from ortholora.engine.grouping import THIN, Grouping
from ortholora.engine.layers import Matrix
from ortholora.engine.sharded import is_sharded
from ortholora.errors import CaptureError

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class _Pair:
    """What the Function needs besides tensors.

    Attributes:
        slot_a: Where A's task gradients go.
        slot_b: Where B's task gradients go.
        scaling: The layer's `alpha / r` (rsLoRA: `alpha / √r`).
        transposed: The base keeps its weight as `[k, d]` (GPT-2's Conv1D).
        dropout: Probability of LoRA dropout in this call.
    """

    slot_a: Slot
    slot_b: Slot
    scaling: float
    transposed: bool
    dropout: float


class _FusedLora(torch.autograd.Function):
    """`x W0ᵀ + b + s · dropout(x) Aᵀ Bᵀ`, whose backward also writes the task gradients of A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        base: Tensor,
        bias: Tensor | None,
        pair: _Pair,
        grouping: Grouping,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        dtype = x.dtype
        with exactly(dtype, x.device.type):
            weight = base.to(dtype) if pair.transposed else base.to(dtype).T
            # What is returned must be no view, or the model could not change it in place (`nn.ReLU(inplace=True)`).
            out = x.new_empty(*x.shape[:-1], weight.shape[1])
            flat = out.view(-1, weight.shape[1])
            if bias is None:
                torch.mm(rows, weight, out=flat)
            else:
                torch.addmm(bias.to(dtype), rows, weight, out=flat)
            mask = _draw_mask(rows, pair.dropout)
            reduced = torch.mm(_drop(rows, mask, pair.dropout), a.to(dtype).T)
            flat.addmm_(reduced, b.to(dtype).T, alpha=pair.scaling)
        ctx.save_for_backward(x, reduced, a, b, base, mask)
        ctx.pair, ctx.grouping, ctx.slot = pair, grouping, pair.slot_a
        return out

    @staticmethod
    @once
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        pair: _Pair = ctx.pair
        x, reduced, a, b, base, mask = _saved(ctx, pair.slot_a.matrix.name)
        lead, dtype = x.shape[:-1], x.dtype
        with exactly(dtype, x.device.type):
            rows = delta.reshape(-1, delta.shape[-1])
            inner = _through(rows, b.to(dtype)).mul_(pair.scaling)  # [N, r], the gradient of `x Aᵀ`
            d_x = None
            if ctx.needs_input_grad[0]:
                weight = base.to(dtype).T if pair.transposed else base.to(dtype)
                d_x = _input_gradient(torch.mm(rows, weight), inner, a.to(dtype), mask, pair.dropout).view(x.shape)
            dropped = x if mask is None else _drop(x.reshape(-1, x.shape[-1]), mask, pair.dropout).view(x.shape)
            _, (of_a, _), (of_b, _), *_ = ctx.next_functions
            inner, scaled = inner.view(*lead, len(a)), (reduced * pair.scaling).view(*lead, len(a))
            d_a = weight_gradient(pair.slot_a, ctx.grouping, inner, dropped, of_a, a.dtype)
            d_b = weight_gradient(pair.slot_b, ctx.grouping, delta, scaled, of_b, b.dtype)
        return d_x, d_a, d_b, None, None, None, None


def _saved(ctx: Any, name: str) -> tuple[Any, ...]:
    """What the forward kept.

    Raises:
        CaptureError: The layer's input was changed in place since.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise CaptureError(
            f"The input of the layer of {name} was changed in place after the layer had read it",
            expected="an input that stays as it is until the backward: the fused path keeps it, and no copy",
            found=str(error).split("; expected")[0],
            todo="change a copy of it (`x = x + y` for `x += y`), or build OrthoLora with fused=False, which keeps "
            "what PEFT keeps",
        ) from error


def _through(rows: Tensor, b: Tensor) -> Tensor:
    """`rows @ b` for a thin b `[d, r]`: in float32 CPU libraries are twice as fast on its transpose."""
    if rows.dtype == torch.float32 and b.shape[1] <= THIN and not rows.is_cuda:
        b = b.T.contiguous().T
    return torch.mm(rows, b)


def _draw_mask(rows: Tensor, dropout: float) -> Tensor | None:
    """Which inputs survive, one byte each; None without dropout."""
    return None if dropout == 0 else torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - dropout)


def _drop(rows: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return rows if mask is None else (rows * mask).mul_(1 / (1 - dropout))


def _input_gradient(through_base: Tensor, inner: Tensor, a: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Add what comes through the LoRA product to what came through the base, in place."""
    if mask is None:
        return through_base.addmm_(inner, a)
    return through_base.addcmul_(torch.mm(inner, a), mask, value=1 / (1 - dropout))


class FusedLayer:
    """Runs one LoRA layer through `_FusedLora` wherever that is the same as its own forward.

    Args:
        layer: The LoRA layer; `why_not_fused` must have had nothing against it.
        adapter: Its one trainable adapter.
        slots: Where the task gradients of A and of B go.
        current: The micro-batch that is being run.
    """

    def __init__(self, layer: peft_lora.Linear, adapter: str, slots: tuple[Slot, Slot], current: CurrentBatch) -> None:
        self._layer, self._adapter, self._slots, self._current = layer, adapter, slots, current
        self._parts = _parts_of(layer, adapter)

    @property
    def is_leftover(self) -> bool:
        """Whether it came along with a copy of an attached model."""
        return self._current.is_copy

    def install(self) -> None:
        """Replace the layer's forward."""
        self._layer.forward = self  # type: ignore[method-assign]

    def uninstall(self) -> None:
        """Give the layer its own forward back."""
        self._layer.__dict__.pop("forward", None)

    @not_compiled
    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer: fused in a plain forward of a batch, by its own forward otherwise.

        Without gradients, too: reentrant checkpointing runs the layer once without and once with them, and both
        must draw the same dropout mask.
        """
        if self._current.trying is not None:
            return type(self._layer).forward(self._layer, x, *args, **kwargs)
        grouping = self._current.now
        dtype = self._dtype(x)
        if grouping is None or args or kwargs or dtype is None or is_unusual(x) or not self._is_plain():
            if grouping is None and self._layer.training and torch.is_grad_enabled() and in_backward():
                raise outside_batch(self._slots[0].matrix.name)  # a recomputation that is not what it recomputes
            return type(self._layer).forward(self._layer, x, *args, **kwargs)
        if self._current.note is not None:
            self._current.note(self._slots[0], x)
        base, a, b, dropout = self._parts
        if torch.is_grad_enabled():
            for slot in self._slots:
                slot.group.ran[slot.row] = True
        pair = _Pair(
            *self._slots,
            scaling=self._layer.scaling[self._adapter],
            transposed=not isinstance(base, nn.Linear),
            dropout=dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
        )
        return _FusedLora.apply(x.to(dtype), a.weight, b.weight, base.weight, base.bias, pair, grouping)

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        """The precision that PEFT's base product would run in; None where it would fail."""
        same = x.dtype == self._parts[0].weight.dtype
        if torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, self._parts[0].weight.dtype):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype if same else None  # autocast leaves float64 alone

    def _is_plain(self) -> bool:
        layer = self._layer
        return (
            not layer.disable_adapters
            and not _has_any_global_hook()  # the parts are not called as modules
            and not layer.merged
            and layer.active_adapters == [self._adapter]
            and _parts_of(layer, self._adapter) == self._parts  # none was replaced since (modules compare by identity)
            and not any(is_sharded(part.weight) for part in self._parts[:3])  # FSDP2 did not gather them for this call
            and why_parts_not_fused(self._parts) is None
        )


def why_not_fused(layer: nn.Module, matrices: Sequence[Matrix]) -> str | None:
    """Say why a LoRA layer takes the general path, or None where it can be fused.

    Args:
        layer: The LoRA layer.
        matrices: Its trainable one-pass matrices.
    """
    if type(layer) is not peft_lora.Linear:
        return f"a {type(layer).__module__.removeprefix('peft.tuners.')}.{type(layer).__name__}"
    if sorted(m.role for m in matrices) != ["A", "B"] or len(layer.active_adapters) != 1:
        return "not one adapter with A and B both trainable"
    if "forward" in layer.__dict__:
        return "its forward was replaced already"
    return why_parts_not_fused(_parts_of(layer, layer.active_adapters[0]))


def _parts_of(layer: peft_lora.Linear, adapter: str) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """The modules that the Function stands in for: base, A, B, dropout."""
    return layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter], layer.lora_dropout[adapter]


def why_parts_not_fused(parts: tuple[nn.Module, ...]) -> str | None:
    """The same for the layer's parts, as `_parts_of` gives them."""
    base, a, b, dropout = parts
    if not _is_plain_base(base):
        return f"its base is a {type(base).__name__}"
    if type(dropout) not in (nn.Identity, nn.Dropout):
        return f"its dropout is a {type(dropout).__name__}"
    if a.bias is not None or b.bias is not None:
        return "lora_bias"
    if not (a.weight.requires_grad and b.weight.requires_grad):
        return "A or B is frozen"
    if any(_is_watched(part) for part in parts):
        return "a hook watches a part of it"
    return None


def _is_plain_base(base: nn.Module) -> bool:
    # Conv1D by name: the engine does not import transformers.
    plain = type(base) is nn.Linear or (type(base).__name__, type(base).__module__) == (
        "Conv1D",
        "transformers.pytorch_utils",
    )
    if not plain or "forward" in base.__dict__:  # an offloading hook replaces forward
        return False
    weight, bias = base.weight, base.bias
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    return frozen and (type(weight) is nn.Parameter or is_sharded(weight)) and weight.dtype in _FLOATS


def _is_watched(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
