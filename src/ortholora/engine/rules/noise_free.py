"""What two halves of a step say about the gradients behind their noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine.halves import whole
from ortholora.engine.rules.balanced import lengths
from ortholora.engine.rules.base import RuleContext


def noise_free_gram(gram: Tensor, context: RuleContext) -> Tensor:
    """Inner products `⟨E g_s, E g_t⟩` of the gradients without their noise, unbiased: `[N, 2T, 2T]` → `[N, T, T]`.

    Different tasks have different rows, so `⟨g_s, g_t⟩` is unbiased already. A task's own squared length becomes
    `n² / (n_a n_b) · ⟨g_a, g_b⟩`, with n rows in all; it may be negative. A task with one half only keeps the
    inflated `‖g_t‖²`.
    """
    count = gram.shape[1] // 2
    result = whole(gram)
    factor, known = _to_whole(context)
    factor, known = factor.to(gram.device), known.to(gram.device)
    raw = result.diagonal(dim1=1, dim2=2)
    across = gram.diagonal(offset=count, dim1=1, dim2=2) * factor
    raw.copy_(torch.where(known, across, raw))
    return result


def half_agreement(gram: Tensor, context: RuleContext) -> tuple[Tensor, Tensor]:
    """How much of a task's gradient comes again in other rows: `r = ⟨a, b⟩ / ½(‖a‖² + ‖b‖²)`, in [-1, 1].

    a and b are the halves, each scaled up to the whole step's rows. With signal S = ‖E g‖² and noise σ² a row,
    `E⟨a, b⟩ / E ½(‖a‖² + ‖b‖²) = S / (S + k σ² / n)` with n rows in all and `k = n² / (2 n_a n_b)`, 2 for equal halves.

    Args:
        gram: `[N, 2T, 2T]`.
        context: The rule's.

    Returns:
        `r [N, T]`, and `known [N, T]`: where both halves are there and a gradient is.
    """
    count = gram.shape[1] // 2
    assert context.halves is not None, "the engine counts the halves for a rule that asks for them"
    units = context.halves.to(gram.device)
    scale = units.sum(0) / units.clamp_min(1)  # [2, T]
    squared = gram.diagonal(dim1=1, dim2=2).unflatten(1, (2, count)) * scale.square()
    across = gram.diagonal(offset=count, dim1=1, dim2=2) * scale.prod(0)
    size = squared.mean(1)
    known = (units.amin(0) > 0) & (lengths(whole(gram)) > 0) & (size > 0) & across.isfinite() & size.isfinite()
    return torch.where(known, across / torch.where(known, size, 1.0), 1.0).clamp(-1, 1), known


def signal_share(agreement: Tensor, context: RuleContext) -> Tensor:
    """The share of `‖g‖²` that is signal, `S / (S + σ² / n)`, from the agreement of the halves `r [N, T]`.

    `1 / (1 + (1/r − 1) / k)`; for equal halves `2 r / (1 + r)`, the Spearman-Brown formula. Where r is
    negative, 0.
    """
    factor, _ = _to_whole(context)
    k, agreement = (factor / 2).to(agreement), agreement.clamp_min(0)
    return k * agreement / (k * agreement + 1 - agreement)


def _to_whole(context: RuleContext) -> tuple[Tensor, Tensor]:
    """`n² / (n_a n_b)` of every task `[T]`, and where it has two halves."""
    assert context.halves is not None, "the engine counts the halves for a rule that asks for them"
    units = context.halves
    known = units.amin(0) > 0
    return torch.where(known, units.sum(0).square() / units.prod(0).clamp_min(1), 4.0), known
