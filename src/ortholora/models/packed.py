"""Padding-free batches: several texts in one row `[1, S]`, with no attention from one to another.

How a backbone is told differs: a kernel for sequences of unequal length, a mask, or nothing but positions that
start over. Which of them works is found by trying: a backbone that gives a text other states in a packed row
than alone is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ortholora.errors import UserError
from ortholora.models.adapted import evaluating

#: How attention is kept inside of a text. `square` is `mask` for the encoders of transformers 4, which take `[1, S, S]`
#: and add the dimension of the heads themselves.
Way = Literal["lengths", "mask", "square", "positions"]

#: Relative difference allowed between packed and separate states: other kernels round otherwise.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 5e-2


def find_way(encoder: nn.Module) -> Way:
    """Find out how this backbone keeps texts of a packed row apart.

    Args:
        encoder: The backbone, with or without adapter. Its mode is restored.

    Raises:
        UserError: In every way a text's states depend on what is packed beside it.
    """
    ways: Sequence[Way] = ("lengths",) if has_flash_attention(encoder) else ("mask", "square", "positions")
    with evaluating(encoder):
        for way in ways:
            if _keeps_apart(encoder, way):
                return way
    raise UserError(
        f"{type(encoder).__name__} cannot run padding-free batches",
        expected="a backbone that gives a text the same states in a packed row as alone",
        found=f"other states, with the attention {_kernel(encoder)!r}",
        todo="use another `mixing.layout` (`auto` does)",
    )


def has_flash_attention(encoder: nn.Module) -> bool:
    """Whether the backbone runs a kernel for sequences of unequal length."""
    return _kernel(encoder).startswith("flash")


def _kernel(encoder: nn.Module) -> str:
    return str(getattr(encoder.config, "_attn_implementation", "eager"))


def attention_arguments(encoder: nn.Module, way: Way, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What the backbone's forward gets besides tokens.

    Args:
        encoder: The backbone.
        way: What `find_way` found.
        lengths: Tokens of each text of the row.
        device: Where tensors go.

    Returns:
        `position_ids [1, S]` that start over with each text, and what the way asks for.
    """
    arguments: dict[str, Any] = {"position_ids": torch.cat([torch.arange(n) for n in lengths])[None].to(device)}
    if hasattr(encoder.config, "use_cache"):
        # With a cache in play, decoders do not look at where positions start over.
        arguments["use_cache"] = False
    if way == "lengths":
        stops = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        longest = max(lengths)
        arguments |= {"cu_seq_lens_q": stops, "cu_seq_lens_k": stops, "max_length_q": longest, "max_length_k": longest}
    elif way in ("mask", "square"):
        text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        allowed = (text[:, None] == text[None, :])[None].to(device)
        arguments["attention_mask"] = allowed if way == "square" else _for_heads(encoder, allowed)
    return arguments


def _for_heads(encoder: nn.Module, allowed: Tensor) -> Tensor:
    """A mask `[1, 1, S, S]` in the form that the backbone's attention takes as it is."""
    allowed = allowed[None]
    if _kernel(encoder) != "eager":
        return allowed
    dtype = next(encoder.parameters()).dtype  # it adds its mask
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _keeps_apart(encoder: nn.Module, way: Way) -> bool:
    device = next(encoder.parameters()).device
    lengths = [5, 3, 6]
    tokens = torch.arange(sum(lengths), device=device)[None] % 4 + 5
    try:
        with torch.no_grad():
            separate = [encoder(input_ids=part).last_hidden_state[0] for part in tokens.split(lengths, dim=1)]
            arguments = attention_arguments(encoder, way, lengths, device)
            packed = encoder(input_ids=tokens, **arguments).last_hidden_state[0]
            mixed = encoder(input_ids=tokens).last_hidden_state[0]
    except (TypeError, ValueError, RuntimeError, AttributeError):  # the forward does not know the arguments
        return False
    expected = torch.cat(separate).float()
    difference, control = (float((found.float() - expected).norm() / expected.norm()) for found in (packed, mixed))
    # The control is one long text: what does not stand out against it proves nothing.
    return difference < _TOLERANCE.get(packed.dtype, _HALF_TOLERANCE) and difference < control / 4


def pool_packed(states: Tensor, lengths: Sequence[int], pooling: str) -> Tensor:
    """Pool the states `[S, H]` of a packed row to float32 vectors `[texts, H]`, as `pool` does for padded ones."""
    stops = torch.tensor(lengths).cumsum(0)
    if pooling in ("cls", "last"):
        chosen = stops - 1 if pooling == "last" else stops - torch.tensor(lengths)
        return states.index_select(0, chosen.to(states.device)).float()
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(states.device)
    sums = states.new_zeros((len(lengths), states.shape[-1]), dtype=torch.float32)
    sums = sums.index_add(0, text, states.float())
    return sums / torch.tensor(lengths, device=states.device, dtype=torch.float32)[:, None]


def is_packed(inputs: Mapping[str, Any]) -> bool:
    """Whether a collator packed these inputs: they then carry the texts' `lengths`."""
    return "lengths" in inputs
