"""A chat: messages, the last one from the assistant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from ortholora.errors import TemplateError, UserError
from ortholora.text.dialogue import Dialogue, Piece
from ortholora.text.messages import Message, as_message, message_problem, read_tools, tools_problem
from ortholora.text.tokenise import plain_tokens, special_tokens
from ortholora.text.utf8 import is_text
from ortholora.text.written import check_written


@dataclass(frozen=True)
class Chat(Dialogue):
    """Messages, which the tokenizer's chat template writes out.

    Attributes:
        messages: In their order; the last one is the (last) answer.
        tools: What the assistant may call, as the template takes them: JSON schemas of functions.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    expects: ClassVar[str] = (
        "a text that is not empty, or a list of messages with `role` and `content`, the last not from the assistant; "
        "or `messages` with `tools`"
    )

    @classmethod
    def can_ask(cls, question: Any) -> bool:
        """A text that is not empty, or messages. An answer to the assistant's own message was never trained."""
        if isinstance(question, str):
            return bool(question.strip()) and is_text(question)
        if isinstance(question, dict):
            with_tools = question.keys() <= {"messages", "tools"} and tools_problem(question.get("tools")) is None
            return with_tools and isinstance(question.get("messages"), list) and cls.can_ask(question["messages"])
        is_chat = isinstance(question, list) and all(map(_is_message, question))
        return is_chat and bool(question) and question[-1].get("role") != "assistant"

    @classmethod
    def asking(cls, question: str | Mapping[str, Any] | Sequence[Message]) -> Self:
        """A message of the user's, or the messages so far (with tools), and an empty answer."""
        if isinstance(question, Mapping):
            return replace(cls.asking(question["messages"]), tools=read_tools(question.get("tools")))
        asked = [{"role": "user", "content": question}] if isinstance(question, str) else question
        return cls((*map(as_message, asked), {"role": "assistant", "content": ""}))

    @property
    def answer(self) -> str:
        """What the last message says; empty where it only calls tools."""
        return str(self.messages[-1]["content"])

    def with_answer(self, answer: str) -> Self:
        """The chat with another last message."""
        return type(self)((*self.messages[:-1], {"role": "assistant", "content": answer}), self.tools)

    def prompt_tokens(self, tokenizer: Any) -> list[int]:
        """All messages but the last, and what the template puts before an answer."""
        return plain_tokens(tokenizer, _render(tokenizer, self.messages[:-1], self.tools, prompt=True))

    def pieces(self, tokenizer: Any, turns: str) -> Iterator[Piece]:
        """Each answer that is a target, after all that stands before it."""
        # A chat that the assistant opens: there is nothing yet that it could answer.
        answers = [i for i, message in enumerate(self.messages) if i and message["role"] == "assistant"]
        targets_of = answers if turns == "all" else answers[-1:]
        check_written(
            lambda messages, tools: _render(tokenizer, messages, tools, prompt=False),
            self.messages,
            self.tools,
            targets_of,
        )
        done = ""
        for i in targets_of:
            before = _render(tokenizer, self.messages[:i], self.tools, prompt=True)
            after = _render(tokenizer, self.messages[: i + 1], self.tools, prompt=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise _rewrites(before if not before.startswith(done) else after, turns)
            yield plain_tokens(tokenizer, before[len(done) :]), 0
            answer = plain_tokens(tokenizer, after[len(before) :])
            targets = _until_end(tokenizer, answer)
            if i == answers[-1]:
                answer = answer[:targets]  # a line break after the end of the last turn is of no use
            yield answer, targets
            done = after

    def serialised(self) -> list[str]:
        """The messages as one text in JSON; the tools, if any, as another."""
        parts = [self.messages, self.tools] if self.tools else [self.messages]
        return [json.dumps(list(part), ensure_ascii=False, default=str) for part in parts]


def _until_end(tokenizer: Any, answer: list[int]) -> int:
    """Number of tokens up to the one that ends the turn; all if the template has none."""
    special = [i for i, token in enumerate(answer) if token in special_tokens(tokenizer)]
    return special[-1] + 1 if special else len(answer)


def _render(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "The tokenizer has no chat template",
            expected="a tokenizer with a chat template for tasks of `kind: chat`",
            found=f"{type(tokenizer).__name__} of {getattr(tokenizer, 'name_or_path', '') or 'this backbone'} without",
            todo="use the instruction-tuned model, or `kind: completion`",
        )
    try:
        more = {"tools": list(tools)} if tools else {}
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt, **more)
    except Exception as error:  # a template is a program, which raises what it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TemplateError(
            "The chat template refuses these messages",
            expected="messages in the roles and the order that the backbone's chat template takes",
            found=f"{reason}; roles {[message.get('role') for message in messages]}",
            todo="correct the rows, or use another backbone",
        ) from error


def _rewrites(text: str, turns: str) -> TemplateError:
    return TemplateError(
        "The chat template rewrites earlier messages",
        expected="a template that renders the first messages alike, whatever follows them",
        found=f"another beginning as the chat goes on: …{text[-80:]!r}",
        todo="set `turns: last`, to learn from the last answer only"
        if turns == "all"
        else "use another backbone, or put the chat into words with `kind: completion`",
    )


def _is_message(value: Any) -> bool:
    return message_problem(value) is None
