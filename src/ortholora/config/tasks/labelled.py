"""Tasks whose answers may be listed: the classes of an encoder, the closed set of a language model."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from ortholora.config.strict import wrong
from ortholora.config.tasks.base import Task


class LabelledTask(Task):
    """A task that takes `labels`."""

    labels: list[str] | None = Field(
        None,
        description="The labels, in the order of the classes. Default: those of the training data, sorted. "
        "With two labels the second is the positive one. For a hub data set whose labels are numbered classes, "
        "give their names or, as `['0', '1']`, their numbers.",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if any(isinstance(label, bool) for label in value):
            raise wrong(
                "a list of texts",
                str(value),
                "put labels such as yes, no, on and off in quotes (YAML reads them as booleans)",
            )
        return [str(label) if isinstance(label, int) else label for label in value]

    @model_validator(mode="after")
    def _check_labels(self) -> LabelledTask:
        if self.labels is None:
            return self
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise wrong("at least two different `labels`", ", ".join(self.labels) or "none", "list every class once")
        if self.measure.two_labels and len(self.labels) != 2:
            raise wrong(
                f"two `labels` for metric `{self.metric}`", f"{len(self.labels)} labels", "use accuracy or macro_f1"
            )
        return self
