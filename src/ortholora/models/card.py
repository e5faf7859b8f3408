"""What is saved beside an adapter, so that its model can be rebuilt around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ortholora.errors import UserError, did_you_mean
from ortholora.models.spec import TaskSpec

Pooling = Literal["mean", "cls", "last"]

#: Changes when older versions could not read what is written.
FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What `ortholora.json` holds.

    Attributes:
        backbone: Hub id, folder or `package:NAME`.
        revision: The backbone's revision on the hub.
        dtype: Name of the backbone's precision.
        pooling: How an encoder's token states become one vector.
        max_length: Most tokens of a row.
        tasks: The tasks, in the order of the task ids.
    """

    backbone: str
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    pooling: Pooling
    max_length: int
    tasks: tuple[TaskSpec, ...]

    def index_of(self, task: str) -> int:
        """Position of a task.

        Raises:
            UserError: There is no such task.
        """
        names = [spec.name for spec in self.tasks]
        if task not in names:
            raise UserError(
                f"Unknown task {task!r}",
                expected="one of " + ", ".join(names),
                found=task,
                todo=did_you_mean(task, names, "name one of these tasks with --task"),
            )
        return names.index(task)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.__dict__, "format": FORMAT, "tasks": [spec.to_json() for spec in self.tasks]}
