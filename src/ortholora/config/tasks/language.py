"""Tasks of a language model: an answer to be written, not a class or a number."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

from pydantic import Field, model_validator

from ortholora.config.strict import wrong
from ortholora.config.tasks.labelled import LabelledTask
from ortholora.metrics.table import METRICS, Compares


def is_generated(metric: str | None) -> bool:
    """Whether answers are generated for a metric; False for one that is not known."""
    return metric in METRICS and METRICS[metric].generates


class LanguageTask(LabelledTask):
    """A task that a language model learns."""

    learner: ClassVar[str] = "a language model"

    labels: list[str] | None = Field(
        None,
        description="The closed set of answers, written as in the data; the likeliest of them is the prediction. "
        "Default: open answers.",
    )
    max_new_tokens: int = Field(64, gt=0, le=65_536, description="Longest answer to generate, in tokens.")

    @property
    def compares(self) -> tuple[Compares, ...]:
        """Open answers as they are; with a closed set also the choice from it."""
        return ("answers",) if self.labels is None else ("classes", "answers")

    @property
    def shown(self) -> str:
        """With or without a closed set of answers."""
        return f"{self.kind} with{'' if self.labels else 'out'} `labels`"

    @classmethod
    def check_settings(cls, settings: Any) -> None:
        """Settings of heads change nothing."""
        without = {"pooling": "mean", "head_dropout": 0.1, "training.head_learning_rate": None}
        for key, default in without.items():
            if attrgetter(key)(settings) != default:
                raise wrong(f"no settings of task heads: {cls.learner} has none", f"`{key}`", f"remove `{key}`")

    @model_validator(mode="after")
    def _check_hub_text(self) -> LanguageTask:
        """`hub.text` stands for the prompt or the messages."""
        if self.hub is not None and isinstance(self.hub.text, list) and len(self.hub.text) > 1:
            raise wrong(
                f"one text column for a {self.kind} task", f"`hub.text` with {len(self.hub.text)}", "name one column"
            )
        return self
