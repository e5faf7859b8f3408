"""Tasks of an encoder, and their heads: one small linear layer per task on the pooled vector."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ortholora.data.encoded import EncodedSplit
from ortholora.data.table import as_text, cell_problem
from ortholora.models.answers import Prediction, most_likely
from ortholora.models.spec import TaskSpec
from ortholora.text.tokenise import count_cut, encode

if TYPE_CHECKING:
    from ortholora.data.task import Split, TaskData


@dataclass(frozen=True)
class HeadSpec(TaskSpec):
    """What a task of `kind: classification` or `regression` predicts.

    Attributes:
        labels: Class names in class order; None for regression.
        shift: Mean of the training targets (regression): the head predicts `(target − shift) / scale`,
            so that a task's loss does not depend on the units of its target. 0 without `standardise`.
        scale: Standard deviation of the training targets (regression). 1 without `standardise`.
        metric: Name of the task's metric, for whoever loads the adapter.
        num_texts: Texts in a row: 1, or 2 for pairs.
    """

    shift: float = 0.0
    scale: float = 1.0
    metric: str | None = None
    num_texts: int = 1

    needed: ClassVar[tuple[str, ...]] = ("labels", "shift", "scale", "num_texts")

    @classmethod
    def of(cls, task: TaskData) -> Self:
        """The head a task needs."""
        spec = task.spec
        shift, scale = 0.0, 1.0
        if getattr(spec, "standardise", False):  # regression alone has it
            values = np.asarray(task.train.targets, dtype=np.float64)
            shift, scale = float(values.mean()), float(values.std())
        num_texts = len(task.train.texts[0]) if len(task.train) else len(spec.columns[0])
        return cls(task.name, spec.kind, task.labels, shift, scale, spec.metric, num_texts)

    def check(self) -> None:
        """Also: classes have names, and a number has none."""
        super().check()
        wants_labels = {"classification": True, "regression": False}.get(self.kind)
        if wants_labels is not None and wants_labels != (self.labels is not None):
            raise ValueError(f"task `{self.name}` of kind {self.kind} with{'out' * wants_labels} labels")

    @property
    def num_outputs(self) -> int:
        """Width of the head."""
        return len(self.labels) if self.labels is not None else 1

    def encode(self, split: Split, tokenizer: Any, max_length: int) -> EncodedSplit:
        """Texts as the tokenizer gives them; every row counts 1 in its task's mean loss."""
        features = encode(tokenizer, list(split.texts), max_length)
        lengths = [len(ids) for ids in features["input_ids"]]
        cut = count_cut(tokenizer, list(split.texts), lengths, max_length)
        return EncodedSplit(split.texts, features, split.targets, lengths, [1] * len(lengths), cut)

    def question(self, values: Sequence[object], tools: object = None) -> tuple[Any, str | None]:
        """The texts of a row."""
        problems = (cell_problem(value, "text") for value in values)
        return tuple(as_text(value) for value in values), next((problem for problem in problems if problem), None)

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every row.

        Args:
            outputs: `[B, num_outputs]`.
            targets: `[B]` class indices, or regression targets in their own units.

        Returns:
            `[B]` float32: cross-entropy, or squared error of the standardised target.
        """
        if self.labels is not None:
            return F.cross_entropy(outputs.float(), targets.long(), reduction="none")
        standardised = (targets.float() - self.shift) / self.scale
        return (outputs.float().squeeze(-1) - standardised).square()

    def predictions(self, outputs: Tensor) -> Tensor:
        """`[B]` class indices, or regression values in the target's own units."""
        if self.labels is not None:
            return outputs.argmax(-1)
        return outputs.float().squeeze(-1) * self.scale + self.shift

    def answers(self, outputs: Tensor) -> list[Prediction]:
        """What a user is told, from outputs `[B, num_outputs]`."""
        if self.labels is None:
            return [Prediction(value=value) for value in self.predictions(outputs).tolist()]
        return most_likely(outputs.float().softmax(-1), self.labels)


class Head(nn.Module):
    """`Dropout → Linear`, float32."""

    def __init__(self, hidden_size: int, num_outputs: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.linear: nn.Linear = nn.Linear(hidden_size, num_outputs)
        with torch.no_grad():
            self.linear.weight.normal_(0.0, 0.02, generator=generator)
            self.linear.bias.zero_()

    def forward(self, pooled: Tensor) -> Tensor:
        """`[B, hidden_size]` → `[B, num_outputs]`."""
        # Not under the caller's autocast: bfloat16 outputs would tie, which rank correlations notice.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.linear(self.dropout(pooled.float()))


def build_heads(specs: list[HeadSpec], hidden_size: int, dropout: float, seed: int) -> list[Head]:
    """One head for each task.

    Each is drawn from a generator of its own, by seed and task name: a task's head starts the same whether
    it is trained alone or with others.
    """
    return [
        Head(hidden_size, spec.num_outputs, dropout, torch.Generator().manual_seed(_seed_of(spec.name, seed)))
        for spec in specs
    ]


def _seed_of(name: str, seed: int) -> int:
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % (2**63)
