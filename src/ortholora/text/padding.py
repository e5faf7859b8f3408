"""Rows of marked tokens → the tensors a language model takes, padded on the left.

Answers stand at the end of their rows, so with the padding on the left they stand in few columns, and a model computes
logits for those only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ortholora.text.prompts import IGNORED

#: Rows of `input_ids` and `labels`.
Features = Sequence[dict[str, list[int]]]


def pad_left(features: Features, pad_id: int | None, multiple: int = 1) -> dict[str, Any]:
    """Pad to the longest row, rounded up to a multiple.

    Args:
        features: B rows.
        pad_id: The token to pad with; it is never attended to and never a target.
        multiple: See above.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` `[B, S]`, and what `predicted` returns.
    """
    longest = max(len(f["input_ids"]) for f in features)
    width = -(-longest // multiple) * multiple
    ids, mask, labels = (torch.full((len(features), width), fill) for fill in (pad_id or 0, 0, IGNORED))
    for row, feature in enumerate(features):
        start = width - len(feature["input_ids"])
        ids[row, start:] = torch.tensor(feature["input_ids"])
        labels[row, start:] = torch.tensor(feature["labels"])
        mask[row, start:] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions} | predicted(labels)


def predicted(labels: Tensor) -> dict[str, Tensor]:
    """Find the positions whose logits are needed.

    Args:
        labels: `[B, S]`, `IGNORED` where a token is no target.

    Returns:
        `columns [K]`: positions that predict a target in some row; `labels [B, K]`: what they predict in each.
    """
    of_next = labels[:, 1:]
    columns = (of_next != IGNORED).any(0).nonzero().squeeze(1)
    return {"columns": columns, "labels": of_next[:, columns]}
