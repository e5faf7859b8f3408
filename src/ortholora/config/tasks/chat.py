"""`kind: chat`: messages, the last one from the assistant."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ortholora.config.strict import wrong
from ortholora.config.tasks.base import Columns, Form
from ortholora.config.tasks.language import LanguageTask

#: The column of the tools, where a task does not name another.
TOOLS = "tools"


class ChatTask(LanguageTask):
    """Messages through the tokenizer's chat template, for a language model, with the loss on the answers only."""

    kind: Literal["chat"] = "chat"
    form: ClassVar[Form] = "chats"

    messages: str = Field(
        "messages",
        description="Column of the messages: a list of `role` and `content`, the last one from the assistant.",
    )
    tools: str | None = Field(
        None,
        description="Column of the tools that the assistant may call: a list of JSON schemas, or the same as a text in "
        "JSON. Default: `tools`, if there is such a column.",
    )
    turns: Literal["all", "last"] = Field(
        "all", description="Learn from all of the assistant's messages of a chat, or from the last one only."
    )

    @property
    def more_columns(self) -> tuple[str, ...]:
        """Also the tools'."""
        return (*super().more_columns, self.tools or TOOLS)

    @property
    def columns(self) -> Columns:
        """The messages, which hold the answers, too."""
        return (self.messages,), self.messages

    @model_validator(mode="after")
    def _check_hub_label(self) -> ChatTask:
        if self.hub is not None and self.hub.label is not None:
            raise wrong("no label column: a chat's answers are in its messages", "`hub.label`", "remove `hub.label`")
        return self
