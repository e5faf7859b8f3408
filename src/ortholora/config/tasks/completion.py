"""`kind: completion`: a prompt and what follows it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ortholora.config.tasks.base import Columns, Form
from ortholora.config.tasks.language import LanguageTask


class CompletionTask(LanguageTask):
    """A prompt and its completion, for a language model, with the loss on the completion only."""

    kind: Literal["completion"] = "completion"
    form: ClassVar[Form] = "completions"
    #: A completion has one turn.
    turns: ClassVar[Literal["all"]] = "all"

    prompt: str = Field("prompt", description="Prompt column.")
    completion: str = Field(
        "completion", description="Completion column; it follows the prompt as it is, so mind the space between them."
    )

    @property
    def columns(self) -> Columns:
        """The prompt and the completion."""
        return (self.prompt,), self.completion
