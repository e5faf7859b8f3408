"""What the runs of one configuration share: its tasks, read and tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ortholora.config.choose import check_known
from ortholora.config.schema import Config
from ortholora.data.encoded import EncodedTask
from ortholora.data.mixing import quotas
from ortholora.data.task import TaskData
from ortholora.models.backbone import load_tokenizer
from ortholora.models.kinds import KINDS, encode_task


class Workspace:
    """Tokenised tasks of a configuration, made once and shared by its runs.

    Args:
        config: The configuration.
        tasks: The data.
        like: A workspace with the same rows, backbone and length, whose tokenised rows are taken.
    """

    def __init__(self, config: Config, tasks: Sequence[TaskData], like: Workspace | None = None) -> None:
        self.config: Config = config
        self.tasks: list[TaskData] = list(tasks)
        self._like = like
        # Not earlier: `split_by` makes names of what is in the data.
        check_known("training.selection_weights", config.training.selection_weights, config)
        KINDS[config.tasks[0].kind].model.check_backbone(config.backbone, config.revision)
        for task in tasks:
            metric = task.spec.measure
            if metric.generates:
                rows = [*task.dev.texts, *([] if task.test is None else task.test.texts)]
                metric.implementation().check([row.answer for row in rows])
        self.tokenizer: Any = load_tokenizer(config.backbone, config.revision)
        self._encoded: dict[str, EncodedTask] = {}

    def encoded(self, name: str) -> EncodedTask:
        """One task, tokenised on first use."""
        if name not in self._encoded:
            data = next(task for task in self.tasks if task.name == name)
            if self._like is not None:
                self._encoded[name] = replace(self._like.encoded(name), data=data)
            else:
                self._encoded[name] = encode_task(data, self.tokenizer, self.config.max_length)
        return self._encoded[name]

    def cut_rows(self) -> list[str]:
        """A sentence for every task with rows that are longer than `max_length`."""
        found = []
        for task in self.tasks:
            encoded = self.encoded(task.name)
            cut, total = encoded.cut, encoded.rows
            if cut:
                count = f"all {total:,} rows are" if cut == total else f"{cut:,} of {total:,} rows are"
                limit = f"longer than {self.config.max_length} tokens (`max_length`)"
                found.append(f"{task.name}: {count} {limit} and are cut.")
        return found

    def quota(self) -> dict[str, int]:
        """Rows of each task in a step; decided over all tasks, also for runs of one of them."""
        mixing = self.config.mixing
        rows = mixing.rows_per_task * len(self.tasks)
        sizes = [len(task.train) for task in self.tasks]
        lengths = None
        if mixing.unit == "tokens":
            lengths = [float(np.mean(self.encoded(task.name).train.lengths)) for task in self.tasks]
        found = quotas(sizes, rows, mixing.quota, mixing.temperature, lengths)
        return dict(zip([task.name for task in self.tasks], found, strict=True))
