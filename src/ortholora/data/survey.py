"""What can be said of a task's rows by counting: classes, texts that come again, texts that are in two parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from ortholora.data.task import Split, TaskData
from ortholora.text.dialogue import Dialogue


@dataclass(frozen=True)
class PartSurvey:
    """What is in one part of a task's data.

    Attributes:
        rows: Its rows.
        classes: Class, or answer of a closed set → rows that have it; None where there are none.
        values: Least, mean and greatest target; None where targets are no numbers.
        repeated: Rows that stand there once more: text and answer are those of an earlier row.
        contradicting: Rows whose text stands there with another class, too; 0 where there are no classes.
    """

    rows: int
    classes: dict[str, int] | None
    values: tuple[float, float, float] | None
    repeated: int
    contradicting: int


@dataclass(frozen=True)
class TaskSurvey:
    """What is in the data of a task.

    Attributes:
        parts: `train`, `dev` and, where there is one, `test`.
        shared: Two parts, the first in the order above → rows of the second whose text is also in the first. The text
            is all that is asked: of a prompt or a chat what stands before the (last) answer.
    """

    parts: dict[str, PartSurvey]
    shared: dict[tuple[str, str], int]


def survey(task: TaskData) -> TaskSurvey:
    """Count the rows of a task."""
    splits = {"train": task.train, "dev": task.dev, **({} if task.test is None else {"test": task.test})}
    asked = {part: [_digest(_question(row)) for row in split.texts] for part, split in splits.items()}
    names, shared = list(splits), {}
    for place, first in enumerate(names):
        known = set(asked[first])
        for second in names[place + 1 :]:
            shared[first, second] = sum(text in known for text in asked[second])
    return TaskSurvey({part: _part(task, split, asked[part]) for part, split in splits.items()}, shared)


def _part(task: TaskData, split: Split, asked: list[bytes]) -> PartSurvey:
    dialogues = bool(split.texts) and isinstance(split.texts[0], Dialogue)
    answers: list[Hashable] = [row.answer for row in split.texts] if dialogues else list(split.targets)
    classes = None
    if task.labels is not None:
        counts = Counter(split.targets)
        classes = {label: counts[index] for index, label in enumerate(task.labels)}
    values = None
    if task.labels is None and not dialogues:
        values = float(min(split.targets)), sum(split.targets) / len(split), float(max(split.targets))
    return PartSurvey(
        rows=len(split),
        classes=classes,
        values=values,
        repeated=len(split) - len(set(zip(asked, answers, strict=True))),
        contradicting=_contradicting(asked, split.targets) if task.labels is not None else 0,
    )


def _contradicting(asked: list[bytes], targets: Any) -> int:
    classes: dict[bytes, set[Any]] = {}
    for text, target in zip(asked, targets, strict=True):
        classes.setdefault(text, set()).add(target)
    return sum(len(classes[text]) > 1 for text in asked)


def _question(row: Any) -> list[str]:
    return row.with_answer("").serialised() if isinstance(row, Dialogue) else row.serialised()


def _digest(parts: list[str]) -> bytes:
    """A short stand-in for texts, which may be millions; with their lengths, so that ("a", "bc") is not ("ab", "c")."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.digest()
