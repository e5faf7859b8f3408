"""One file, several tasks: a column that names the task splits it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from ortholora.config.schema import Config
from ortholora.config.tasks.union import TaskConfig
from ortholora.data.table import Table, check_texts, require_columns
from ortholora.errors import UserError, did_you_mean, listing

#: Reads a task's training and evaluation table, and its test table where it has one.
Reader = Callable[[TaskConfig], tuple[Table, ...]]


def split_tasks(config: Config, read: Reader) -> Config:
    """Replace every task that has `split_by` but not `only` by one task for every value of the column.

    Args:
        config: The configuration.
        read: Reads the tables of a task.

    Returns:
        The configuration with tasks `NAME.VALUE`, values in the order of their first rows.

    Raises:
        UserError: The column is missing, or a value makes no name of a task.
    """
    tasks = [part for task in config.tasks for part in (_parts(task, read) if _is_open(task) else [task])]
    if len(tasks) == len(config.tasks) and not any(map(_is_open, config.tasks)):
        return config
    return Config.model_validate(config.model_dump() | {"tasks": [task.model_dump() for task in tasks]})


def only_rows(table: Table, spec: TaskConfig) -> Table:
    """The rows of a task with `only`; the whole table without.

    Raises:
        UserError: The column is missing, or no row has the value.
    """
    if spec.split_by is None or spec.only is None:
        return table
    values = _values(table, spec.split_by)
    kept = [i for i, value in enumerate(values) if value == spec.only]
    if not kept:
        raise UserError(
            f"{table.shown}: no row of task `{spec.name}`",
            expected=f"rows with `{spec.only}` in column `{spec.split_by}`",
            found=f"the values {listing(dict.fromkeys(values))}",
            todo=did_you_mean(spec.only, set(values), "correct `only`, or give every task rows in all files"),
        )
    columns = {name: [column[i] for i in kept] for name, column in table.columns.items()}
    shown = f"{table.shown} (rows with {spec.split_by} = {spec.only})"
    return replace(
        table, shown=shown, source=f"{table.source}[{spec.split_by}={spec.only}]", columns=columns, positions=kept
    )


def _is_open(task: TaskConfig) -> bool:
    return task.split_by is not None and task.only is None


def _parts(task: TaskConfig, read: Reader) -> list[TaskConfig]:
    assert task.split_by is not None
    train, *others = read(task)
    parts = []
    values = dict.fromkeys(_values(train, task.split_by))
    for other in others:
        _check_trained(other, train, task.split_by, values)
    for value in values:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            raise UserError(
                f"{train.shown}, column `{task.split_by}`: no name for a task",
                expected="values of letters, digits, dots, dashes and underscores",
                found=repr(value),
                todo="rename it in the data, or list the tasks one by one with `split_by` and `only`",
            )
        parts.append(task.model_copy(update={"name": f"{task.name}.{value}", "only": value}))
    return parts


def _check_trained(other: Table, train: Table, column: str, values: Collection[str]) -> None:
    untrained = [value for value in dict.fromkeys(_values(other, column)) if value not in values]
    if untrained:
        raise UserError(
            f"{other.shown}, column `{column}`: tasks that no training row has",
            expected=f"the values of {train.shown}: {listing(values)}",
            found=listing(untrained),
            todo="correct the rows, or list the tasks one by one with `split_by` and `only`",
        )


def _values(table: Table, column: str) -> Sequence[str]:
    require_columns(table, [("split_by", column)])
    return check_texts(table, column, "split_by", what="task")
