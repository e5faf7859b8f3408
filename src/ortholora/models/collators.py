"""Rows of several tasks → one batch: padded to its longest row, or packed into one row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from ortholora.text.padding import Features, pad_left, predicted


class Collator:
    """Rows → one batch for an encoder.

    Args:
        tokenizer: Gives `pad`.
        multiple: Pad to a multiple of this many tokens (matrix units of GPUs like 8).
        packed: Lay the rows end to end in one row instead of padding them.
    """

    tokenizer: Any
    multiple: int
    packed: bool

    def __init__(self, tokenizer: Any, multiple: int = 1, packed: bool = False) -> None:
        self.tokenizer, self.multiple, self.packed = tokenizer, multiple, packed

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Build one micro-batch.

        Returns:
            `inputs` (tensors `[B, S]`; packed: `[1, S]` and `lengths`, a list of B ints), `targets` `[B]`
            float, `task_ids` (list of B ints: left on the host on purpose, because nothing on the device needs
            them), and `tokens` (real, padded).
        """
        features = [row["features"] for row in rows]
        inputs = self.pack(features) if self.packed else self.pad(features)
        return {
            "inputs": inputs,
            "targets": torch.tensor([row["target"] for row in rows]),
            "task_ids": [row["task"] for row in rows],
            "tokens": (sum(len(f["input_ids"]) for f in features), inputs["input_ids"].numel()),
        }

    def step(self, micro_batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Build what the loader yields: `micro_batches`, a list of batches.

        Each with the `weights` of the tasks `[T]`, and with `halves`, a list of B ints on the host.
        """
        parts = []
        for micro_batch in micro_batches:
            weights = torch.tensor(micro_batch["weights"], dtype=torch.float32)
            parts.append(self(micro_batch["rows"]) | {"weights": weights, "halves": list(micro_batch["halves"])})
        return {"micro_batches": parts}

    def pad(self, features: Features) -> dict[str, Any]:
        """Tensors `[B, S]`, padded to the longest row."""
        return dict(self.tokenizer.pad(features, pad_to_multiple_of=self.multiple, return_tensors="pt"))

    def pack(self, features: Features) -> dict[str, Any]:
        """Tensors `[1, S]` and the `lengths` of the rows."""
        keys = [key for key in features[0] if key != "attention_mask"]
        inputs: dict[str, Any] = {
            key: torch.tensor([list(chain.from_iterable(f[key] for f in features))]) for key in keys
        }
        return inputs | {"lengths": [len(f["input_ids"]) for f in features]}


class LanguageCollator(Collator):
    """Rows of tokens with their answers marked → one batch for a language model, padded on the left."""

    def pad(self, features: Features) -> dict[str, Any]:
        """See `pad_left`."""
        return pad_left(features, self.tokenizer.pad_token_id, self.multiple)

    def pack(self, features: Features) -> dict[str, Any]:
        """`input_ids [1, S]`, the `lengths` of the rows, `columns [K]`, `labels [1, K]` and their `rows [K]`."""
        inputs = super().pack(features)
        of_row = torch.repeat_interleave(torch.arange(len(features)), torch.tensor(inputs["lengths"]))
        # A row's first token is never a label, so no row predicts the next one's.
        targets = predicted(inputs.pop("labels"))
        return inputs | targets | {"rows": of_row[targets["columns"]]}
