"""Read the tasks of a configuration into memory: choose the source, check the rows, draw, number the labels."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ortholora.config.schema import Config
from ortholora.config.tasks.base import OF_PACKAGE
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.bad_rows import without_bad_rows
from ortholora.data.files import read_file
from ortholora.data.forms import FORMS
from ortholora.data.hub import read_hub
from ortholora.data.labels import check_labelled, check_learnable
from ortholora.data.packages import read_package
from ortholora.data.split_by import Reader, only_rows, split_tasks
from ortholora.data.table import Table
from ortholora.data.task import Split, TaskData
from ortholora.errors import UserError

#: The parts of a task's data, and the number that seeds the draw of each.
_PARTS = {"train": 0, "dev": 1, "test": 3}


def read_tasks(config: Config, *, base: Path, data_dir: Path | None) -> list[TaskData]:
    """Read all tasks of a configuration, in its order.

    Args:
        config: The configuration; its `data_seed` seeds the draws.
        base: Folder of the configuration file, which local paths are relative to.
        data_dir: Folder that local paths are relative to instead, and that wins over the hub.

    Raises:
        UserError: Some data cannot be read or makes no sense; the message names the file and the row.
    """
    shared = _Shared(base, data_dir)
    return [read_task(spec, base=base, data_dir=data_dir, seed=config.data_seed, read=shared) for spec in config.tasks]


def read_each(config: Config, *, base: Path, data_dir: Path | None) -> tuple[list[TaskData], list[UserError]]:
    """Read what can be read; see `read_tasks`.

    Returns:
        The tasks whose data are good, and what is wrong with those of the others.
    """
    shared, good, wrong = _Shared(base, data_dir), [], []
    for spec in config.tasks:
        try:
            good.append(read_task(spec, base=base, data_dir=data_dir, seed=config.data_seed, read=shared))
        except UserError as error:
            wrong.append(error)
    return good, wrong


def split_config(config: Config, *, base: Path, data_dir: Path | None) -> Config:
    """Replace tasks whose `split_by` column holds several tasks by those; see `split_tasks`."""
    return split_tasks(config, lambda spec: _good_tables(spec, base, data_dir))


def read_task(
    spec: TaskConfig, *, base: Path, data_dir: Path | None, seed: int, read: Reader | None = None
) -> TaskData:
    """Read one task.

    The source is the local files if `data_dir` is given and the task names files; else the hub, else the
    package, else the local files relative to `base`.

    Args:
        spec: The task's configuration.
        base: Folder of the configuration file.
        data_dir: Folder of the local files, or `None`.
        seed: Seed of the draws of `max_train_rows`, `max_dev_rows` and `max_test_rows`.
        read: Reads the task's tables, instead of from the source.

    Returns:
        All splits with numbered labels and where they came from.

    Raises:
        UserError: The data cannot be read or makes no sense.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(
            f"--data-dir {data_dir}",
            expected="a folder",
            found="a file" if data_dir.exists() else "nothing there",
            todo="give the folder that the tasks' `train` and `dev` are relative to",
        )
    read = read or _Shared(base, data_dir)
    tables = [only_rows(table, spec) for table in read(spec)]
    if len(tables) > 2:
        check_labelled(spec, tables[2])
    labels, whole = FORMS[spec.form].rows(spec, tables, None)
    splits, sources, dropped = {}, {}, {}
    limits = (spec.max_train_rows, spec.max_dev_rows, spec.max_test_rows)
    for part, table, rows, limit in zip(_PARTS, tables, whole, limits, strict=False):  # a test part or none
        kept = _draw(len(rows), limit, [seed, zlib.crc32(spec.name.encode()), _PARTS[part]])
        splits[part] = rows.take(kept)
        if table.dropped:
            dropped[part] = table.dropped
        sources[part] = f"{table.source} sha256:{hash_rows(splits[part], labels)}"
    if spec.has_targets:
        check_learnable(spec, splits["train"].targets, tables[0].shown, len(whole[0]))
    return TaskData(spec, labels, splits["train"], splits["dev"], sources, splits.get("test"), dropped=dropped)


def hash_rows(split: Split, labels: Sequence[str] | None) -> str:
    """Return the SHA-256 of a split's rows, the same whatever file, hub or machine they came from."""
    digest = hashlib.sha256()
    for row, target in zip(split.texts, split.targets, strict=True):
        shown = labels[int(target)] if labels is not None else repr(float(target))
        digest.update(json.dumps([*row.serialised(), shown]).encode("ascii") + b"\n")
    return digest.hexdigest()


def _tables(spec: TaskConfig, base: Path, data_dir: Path | None) -> tuple[Table, ...]:
    """The tables of a task: training, dev and, where the task has one, test."""

    def file(name: str, text: tuple[str, ...], label: str) -> Table:
        root = data_dir or base
        drop = spec.bad_rows == "drop"
        return read_file(
            root, name, text=text, label=label, also=spec.more_columns, tsv_quotes=spec.tsv_quotes, drop=drop
        )

    text, label = spec.columns
    own = None if spec.test == OF_PACKAGE else spec.test
    has_files = spec.train is not None and spec.dev is not None
    found: list[Table]
    if has_files and (data_dir is not None or (spec.hub is None and spec.package is None)):
        found = [file(str(name), text, label) for name in (spec.train, spec.dev)]
    elif spec.hub is not None:
        splits = (spec.hub.train_split, spec.hub.dev_split, spec.hub.test_split)
        found = [read_hub(spec, split) for split in splits if split is not None]
        own = own if spec.hub.test_split is None else None
    else:
        assert spec.package is not None
        found = list(read_package(spec.package, test=spec.test == OF_PACKAGE))
        text, label = found[0].text, found[0].label
    return *found, *([] if own is None else [file(own, text, label)])


def _good_tables(spec: TaskConfig, base: Path, data_dir: Path | None) -> tuple[Table, ...]:
    return tuple(without_bad_rows(table, spec) for table in _tables(spec, base, data_dir))


class _Shared:
    """Reads the tables of tasks; those of a source that several tasks are split from only once."""

    def __init__(self, base: Path, data_dir: Path | None) -> None:
        self._base, self._data_dir = base, data_dir
        self._kept: dict[str, tuple[Table, ...]] = {}

    def __call__(self, spec: TaskConfig) -> tuple[Table, ...]:
        if spec.split_by is None:
            return _good_tables(spec, self._base, self._data_dir)
        # All but what chooses among the rows, or is of no concern to a reader.
        source = spec.model_copy(update={"name": "any", "only": None}).model_dump_json()
        if source not in self._kept:
            self._kept[source] = _good_tables(spec, self._base, self._data_dir)
        return self._kept[source]


def _draw(count: int, limit: int | None, seed: list[int]) -> Sequence[int]:
    """Return the indices of the rows to keep, in their order: all, or a draw without replacement."""
    if limit is None or limit >= count:
        return range(count)
    drawn = np.random.default_rng(seed).choice(count, size=limit, replace=False)
    return [int(index) for index in np.sort(drawn)]
