"""Padding-free batches: several texts in one row `[1, S]`, with no attention from one to another.

How a backbone is told differs: a kernel for sequences of unequal length, a mask, or nothing but positions that
start over. Which of them works is found by trying (`probes.find_packing_mode`): a backbone that gives a text other
states in a packed row than alone is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: How attention is kept inside of a text. `square` is `mask` for the encoders of transformers 4, which take `[1, S, S]`
#: and add the dimension of the heads themselves.
PackingMode = Literal["lengths", "mask", "square", "positions"]


def has_flash_attention(encoder: nn.Module) -> bool:
    """Whether the backbone runs a kernel for sequences of unequal length."""
    return kernel_of(encoder).startswith("flash")


def kernel_of(encoder: nn.Module) -> str:
    """Name of the attention that the backbone runs."""
    return str(getattr(encoder.config, "_attn_implementation", "eager"))


def attention_arguments(
    encoder: nn.Module, mode: PackingMode, lengths: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """What the backbone's forward gets besides tokens.

    Args:
        encoder: The backbone.
        mode: What `find_packing_mode` found.
        lengths: Tokens of each text of the row.
        device: Where tensors go.

    Returns:
        `position_ids [1, S]` that start over with each text, and what the mode asks for.
    """
    arguments: dict[str, Any] = {"position_ids": torch.cat([torch.arange(n) for n in lengths])[None].to(device)}
    if hasattr(encoder.config, "use_cache"):
        # With a cache in play, decoders do not look at where positions start over.
        arguments["use_cache"] = False
    if mode == "lengths":
        stops = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        longest = max(lengths)
        arguments |= {"cu_seq_lens_q": stops, "cu_seq_lens_k": stops, "max_length_q": longest, "max_length_k": longest}
    elif mode in ("mask", "square"):
        text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        allowed = (text[:, None] == text[None, :])[None].to(device)
        arguments["attention_mask"] = allowed if mode == "square" else _for_heads(encoder, allowed)
    return arguments


def _for_heads(encoder: nn.Module, allowed: Tensor) -> Tensor:
    """A mask `[1, 1, S, S]` in the form that the backbone's attention takes as it is."""
    allowed = allowed[None]
    if kernel_of(encoder) != "eager":
        return allowed
    dtype = next(encoder.parameters()).dtype  # it adds its mask
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


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
