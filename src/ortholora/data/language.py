"""The batches of a language model: rows of tokens with their answers marked."""

from __future__ import annotations

from typing import Any

import torch

from ortholora.data.encoded import Collator
from ortholora.text.padding import Features, pad_left, predicted


class LanguageCollator(Collator):
    """Rows → one batch for `LanguageModel`, padded on the left or packed into one row."""

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
