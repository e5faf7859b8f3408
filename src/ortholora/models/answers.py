"""What a model answers: to a user's texts, and to rows whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """An answer for one text.

    Attributes:
        label: Predicted class (classification), or the likeliest of a closed set of answers (language model).
        scores: Class → probability; among the answers of the set, for a language model.
        value: Predicted value (regression).
        text: Generated answer (language model with open answers).
    """

    label: str | None = None
    scores: dict[str, float] | None = None
    value: float | None = None
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What the answer has, as plain data; a generated one under `answer`."""
        content = asdict(self)
        content["answer"] = content.pop("text")
        return {key: value for key, value in content.items() if value is not None}


def most_likely(probabilities: Tensor, labels: Sequence[str]) -> list[Prediction]:
    """The class of every row, from probabilities `[rows, classes]`."""
    return [
        Prediction(label=labels[int(row.argmax())], scores=dict(zip(labels, row.tolist(), strict=True)))
        for row in probabilities
    ]


@dataclass(frozen=True)
class Answers:
    """What a model says to some rows of a task; no metric yet.

    Attributes:
        predictions: Class indices or values, `[rows]`; None where answers are open.
        losses: Negative log-likelihood of every row's target tokens, summed, `[rows]`; None for a task head.
        wanted: The rows' own answers, where some were generated.
        written: Generated answers; None where no metric needs them.
    """

    predictions: np.ndarray | None = None
    losses: np.ndarray | None = None
    wanted: Sequence[str] = ()
    written: Sequence[str] | None = None
