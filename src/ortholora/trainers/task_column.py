"""The column of a data set that names each row's task, on its way to `ortho.batch(...)`.

Names become numbers in a column `task_ids`; the collator takes them out of the rows and puts them back as what a
batch needs: one id a row, or one a token where several texts lie in one row. It also counts each task's targets
while the labels are still on the CPU. Both travel as NumPy arrays, which nobody moves to a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ortholora.errors import UserError

#: Columns looked for if none is named; `channel` is what ms-swift calls it.
TASK_COLUMNS = ("task", "channel")
TASK_IDS, TASK_TARGETS = "task_ids", "task_targets"


def number_tasks(dataset: Any, column: str | None = None, tasks: Sequence[str] | None = None) -> tuple[Any, list[str]]:
    """Add the column `task_ids` to a `datasets.Dataset` or `IterableDataset`.

    Args:
        dataset: Rows, one column of which names the task.
        column: That column. Default: `task`, or else `channel`.
        tasks: Names in the order of the ids. Default: all that occur, sorted (not for an iterable data set).

    Returns:
        The data set with `task_ids`, and the names of the tasks.

    Raises:
        UserError: There is no such column, a row's task is not in `tasks`, or a row has none.
    """
    column = _find_column(dataset, column)
    class_names = getattr((dataset.features or {}).get(column), "names", None)
    if tasks is None:
        if not hasattr(dataset, "unique"):
            raise UserError(
                "The tasks of a streaming data set cannot be listed without reading it",
                expected='their names: tasks=["...", "..."]',
                found=f"a {type(dataset).__name__} and no tasks",
                todo="pass tasks=[...] to the trainer",
            )
        tasks = sorted(_names(dataset.unique(column), column, class_names))
    numbers = {name: number for number, name in enumerate(tasks)}
    settings = {"column": column, "numbers": numbers, "class_names": class_names}
    numbered = dataset.map(_number, batched=True, fn_kwargs=settings)
    return numbered, list(tasks)


def _number(
    rows: dict[str, list[Any]], column: str, numbers: dict[str, int], class_names: list[str] | None
) -> dict[str, list[int]]:
    names = _names(rows[column], column, class_names)
    unknown = set(names) - numbers.keys()
    if unknown:
        raise UserError(
            f"The column {column!r} names a task that is not in `tasks`",
            expected=f"one of {list(numbers)}",
            found=repr(min(unknown)),
            todo="add it to tasks=[...], or leave the row out",
        )
    return {TASK_IDS: [numbers[name] for name in names]}


def _names(values: Sequence[Any], column: str, class_names: list[str] | None) -> list[str]:
    """Names of tasks; a `ClassLabel` column holds numbers of them, and -1 where there is none."""
    if any(value is None or (class_names is not None and value < 0) for value in values):
        raise UserError(
            f"The column {column!r} does not say which task a row belongs to",
            expected="the name of a task in every row",
            found="a row without one (concatenate_datasets fills a column that some parts lack with nulls)",
            todo='add the column to every part: dataset.add_column("task", ["summaries"] * len(dataset))',
        )
    return [str(value) if class_names is None else class_names[value] for value in values]


def _find_column(dataset: Any, column: str | None) -> str:
    names = dataset.column_names or list(next(iter(dataset)))
    for candidate in TASK_COLUMNS if column is None else (column,):
        if candidate in names:
            return candidate
    raise UserError(
        "The data set does not say which task a row belongs to",
        expected=f"a column {column or ' or '.join(map(repr, TASK_COLUMNS))}",
        found=f"columns {sorted(names)}",
        todo='add one, for example dataset.add_column("task", ["summaries"] * len(dataset)) before '
        "concatenate_datasets([...]), or name yours: task_column=...",
    )


class TaskCollator:
    """Wraps a collator: `task_ids` leave the rows and come back as `[B]`, or `[B, S]` where a row holds several texts.

    Where the collator inside makes `labels [B, S]` (padded on the right), the batch also gets `task_targets [T]`: how
    many tokens of each task have a label, the first of a row not counted, because nothing predicts it. Without
    labels there is one id for each of the rows. Rows without `task_ids` (evaluation) are only passed on.

    Args:
        collator: The collator inside.
        tasks: T.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Any], tasks: int) -> None:
        self.collator: Callable[[list[dict[str, Any]]], Any] = collator
        self.tasks: int = tasks

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """Make a batch of the rows."""
        if TASK_IDS not in rows[0]:
            return self.collator(rows)
        batch = self.collator([{key: value for key, value in row.items() if key != TASK_IDS} for row in rows])
        if "labels" not in batch:
            batch[TASK_IDS] = np.array([row[TASK_IDS] for row in rows])
            return batch
        labels: Tensor = batch["labels"]
        ids = _ids_of_batch(rows, tuple(labels.shape))
        with_target = (labels[:, 1:] != -100).numpy()
        batch[TASK_IDS] = ids
        batch[TASK_TARGETS] = np.bincount(of_targets(ids, with_target.shape)[with_target], minlength=self.tasks)
        return batch


def of_targets(ids: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The task of every predicted token `[B, S - 1]`: that of the token itself, not of the position before it."""
    return ids[:, 1:] if ids.ndim == 2 else np.broadcast_to(ids[:, None], shape)


def _ids_of_batch(rows: list[dict[str, Any]], shape: tuple[int, ...]) -> np.ndarray:
    count, length = shape
    if count == len(rows) and not any(isinstance(row[TASK_IDS], Sequence) for row in rows):
        return np.array([row[TASK_IDS] for row in rows])
    of_rows = [_token_ids(row) for row in rows]
    if count == 1:  # padding-free: all in one row
        of_rows = [np.concatenate(of_rows)]
    assert len(of_rows) == count, f"{len(rows)} rows became {count}"
    # Padding has no gradient; it gets the task of its row.
    return np.stack([np.pad(ids, (0, length - len(ids)), mode="edge") for ids in of_rows])


def _token_ids(row: dict[str, Any]) -> np.ndarray:
    ids = np.asarray(row[TASK_IDS])
    return ids if ids.ndim else np.full(len(row["input_ids"]), ids)


def spread_over_tokens(row: dict[str, Any]) -> dict[str, list[int]]:
    """Give a row's task to each of its tokens, so that it survives packing (for `Dataset.map`)."""
    return {TASK_IDS: [row[TASK_IDS]] * len(row["input_ids"])}


def task_mean_weights(weights: Tensor, targets: Tensor) -> Tensor:
    """`w_t / n_t`: what each target token of a task weighs in `Σ_t w_t L_t`; `[T]`."""
    return weights / targets.clamp(min=1).to(torch.float32)
