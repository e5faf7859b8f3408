"""A folder of small data files, the task on them, and what a complaint about them holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.read import read_task
from ortholora.data.task import TaskData
from ortholora.errors import UserError

TASK: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)
TSV = "text\tlabel\none\tb\ntwo\ta\nthree\tb\n"


def spec(**keys: Any) -> TaskConfig:
    return TASK.validate_python({"name": "t", "train": "train.tsv", "dev": "dev.tsv", **keys})


class Folder:
    """A folder of data files and the task on it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: str | bytes) -> None:
        (self.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def both(self, content: str | bytes, ending: str = "tsv") -> None:
        for part in ("train", "dev"):
            self.write(f"{part}.{ending}", content)

    def read(self, ending: str = "tsv", **keys: Any) -> TaskData:
        task = spec(**{"train": f"train.{ending}", "dev": f"dev.{ending}", **keys})
        return read_task(task, base=self.path, data_dir=None, seed=0)

    def complaint(self, ending: str = "tsv", **keys: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.read(ending, **keys)
        return str(caught.value)


def check(message: str, *parts: str) -> None:
    assert all(part in message for part in ("expected: ", "found: ", "to do: ", *parts)), message
