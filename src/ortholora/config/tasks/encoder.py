"""Tasks of an encoder: a text or a pair of texts, and a label."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from ortholora.config.strict import wrong
from ortholora.config.tasks.base import Columns, Task


class EncoderTask(Task):
    """A task that is learned with a head on an encoder."""

    learner: ClassVar[str] = "an encoder"

    text: str | list[str] = Field("text", description="Text column, or a list of two for sentence pairs.")
    label: str = Field("label", description="Label column.")

    @property
    def columns(self) -> Columns:
        """The texts and the label."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text), self.label

    @field_validator("text")
    @classmethod
    def _one_or_two_columns(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(value) not in (1, 2):
            raise wrong("one column, or a list of two for sentence pairs", f"{len(value)} columns", "name one or two")
        return value
