"""Turn labels into class indices or regression targets, and refuse what cannot be learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ortholora.config.tasks.union import TaskConfig
from ortholora.data.table import DROP, Rows, Table, row_numbers
from ortholora.errors import UserError, did_you_mean, listing

#: What published test sets say instead of their labels.
_HIDDEN = {"-1", "-1.0"}


def class_names(spec: TaskConfig, train: Rows) -> tuple[str, ...]:
    """Return the classes of a task in the order of their indices.

    The configured `labels`; else the source's own order (hub); else those of the training rows, sorted, as
    numbers where all are numbers.

    Raises:
        UserError: A configured label never occurs, there is only one class, or the metric needs two.
    """
    occurring = set(train.labels)
    where = f"{train.table.shown}, column `{train.table.label}`"
    if spec.labels is None:
        own = train.table.classes
        names = tuple(name for name in own if name in occurring) if own else tuple(sorted(occurring, key=_order))
    else:
        names = tuple(spec.labels)
        idle = [name for name in names if name not in occurring]
        if idle:
            raise UserError(
                f"task `{spec.name}`: configured labels that no training row has",
                expected=f"rows with each of {listing(names)} in {where}",
                found=f"no row with {listing(idle)}; the file has {listing(sorted(occurring, key=_order))}",
                todo=did_you_mean(idle[0], occurring - set(names), "correct the task's `labels`"),
            )
    if len(names) < 2:
        raise UserError(
            f"task `{spec.name}`: only one class",
            expected=f"at least two different labels in {where}",
            found=f"{listing(names)} in all {len(train)} rows",
            todo="give data with two or more classes, or point `label` to another column",
        )
    if spec.measure.two_labels and len(names) != 2:
        raise UserError(
            f"task `{spec.name}`: metric `{spec.metric}` does not fit",
            expected="exactly two labels",
            found=f"{len(names)}: {listing(names)}",
            todo="use `accuracy` or `macro_f1`",
        )
    return names


def class_indices(rows: Rows, names: Sequence[str]) -> list[int]:
    """Return the class index of every row.

    Raises:
        UserError: A row has a label that is not among `names`.
    """
    index = {name: position for position, name in enumerate(names)}
    unknown = [row for row, label in enumerate(rows.labels) if label not in index]
    if unknown:
        label = rows.labels[unknown[0]]
        raise UserError(
            f"{rows.table.shown}, column `{rows.table.label}`: unknown label",
            expected=f"one of {listing(names)}",
            found=f"`{label}` in {row_numbers(rows.table, [r for r in unknown if rows.labels[r] == label], len(rows))}",
            todo=did_you_mean(label, names, "correct the rows, or list every label in the task's `labels`"),
        )
    return [index[label] for label in rows.labels]


def regression_targets(rows: Rows) -> list[float]:
    """Return the target of every row.

    Raises:
        UserError: A target is not a finite number.
    """
    targets = [_number(label) for label in rows.labels]
    bad = [row for row, target in enumerate(targets) if not math.isfinite(target)]
    if bad:
        raise UserError(
            f"{rows.table.shown}, column `{rows.table.label}`: not a number",
            expected="a finite number in every row, since the task's `kind` is `regression`",
            found=f"`{rows.labels[bad[0]]}` in {row_numbers(rows.table, bad, len(rows))}",
            todo=f"correct these rows, or use `kind: classification`, {DROP}",
        )
    return targets


def check_labelled(spec: TaskConfig, test: Table) -> None:
    """Refuse test rows without labels, as many published test sets are.

    Raises:
        UserError: The label column is missing, or a row has no label in it; -1 in every row counts as none.
    """
    found = None
    if test.label not in test.columns:
        found = f"no column `{test.label}`, but {listing(test.found)}"
    else:
        labels = test.columns[test.label]
        empty = [i for i, label in enumerate(labels) if label is None or not str(label).strip()]
        if empty:
            found = f"no label in {row_numbers(test, empty, len(labels))}"
        elif len(labels) and {str(label).strip() for label in labels} <= _HIDDEN - set(spec.labels or ()):
            found = f"{labels[0]} in every row"
    if found is not None:
        raise UserError(
            f"task `{spec.name}`: the test part {test.shown} has no labels",
            expected=f"a label in column `{test.label}` in every row, because the task is scored on them",
            found=found,
            todo="give test rows with labels, or remove `test`: the task is then scored on its dev rows",
        )


def check_learnable(spec: TaskConfig, kept: Sequence[float], where: str, count: int) -> None:
    """Refuse training rows that all have the same target.

    Args:
        spec: The task.
        kept: Targets of the rows that are kept.
        where: The source of the rows, for messages.
        count: Number of training rows before the draw of `max_train_rows`.

    Raises:
        UserError: All `kept` are equal.
    """
    if len(set(kept)) > 1:
        return
    drawn = len(kept) < count
    raise UserError(
        f"task `{spec.name}`: nothing to learn, all training targets are the same",
        expected=f"at least two different targets in {where}",
        found=f"{len(kept)} rows with one target" + (f" after `max_train_rows: {spec.max_train_rows}`" * drawn),
        todo="raise `max_train_rows`" if drawn else "give other data, or point `label` to another column",
    )


def is_number(label: str) -> bool:
    """Whether a label is a finite number."""
    return math.isfinite(_number(label))


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def _order(label: str) -> tuple[bool, float, str]:
    """Sort numbers by value and before words."""
    number = _number(label)
    return (False, number, label) if math.isfinite(number) else (True, 0.0, label)
