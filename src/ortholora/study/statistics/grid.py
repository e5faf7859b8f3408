"""The runs of a study, arranged by method, seed and task, after a check that they can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ortholora.errors import UserError
from ortholora.metrics.compute import compute
from ortholora.runs.record import RunRecord

#: How far a recorded metric may be from the one of the recorded predictions: float32 rounding, generously.
_METRIC_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Grid:
    """One record for every method, seed and task.

    Attributes:
        methods: Names of the methods.
        seeds: Seeds, ascending.
        tasks: Names of the tasks.
        cells: (method, seed, task) → the record that holds it.
        values: Metrics of the recorded predictions, fractions, `[methods, seeds, tasks]`.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    cells: dict[tuple[str, int, str], RunRecord]
    values: np.ndarray

    @property
    def rules(self) -> tuple[str, ...]:
        """The methods that are compared with `joint`: all but `single` and `joint`."""
        return tuple(method for method in self.methods if method not in ("single", "joint"))

    @property
    def records(self) -> list[RunRecord]:
        """The records in use, each once."""
        return list({id(record): record for record in self.cells.values()}.values())

    def of_method(self, method: str, seed: int) -> list[RunRecord]:
        """Return the records of a method and seed: one, or for `single` one a task."""
        chosen = [self.cells[method, seed, task] for task in self.tasks]
        return list({id(record): record for record in chosen}.values())

    def metric(self, task: str) -> str:
        """Return the name of the task's metric."""
        return self._any(task).metric_names[task]

    def num_labels(self, task: str) -> int | None:
        """Return the task's number of classes; `None` for regression."""
        return self._any(task).num_labels[task]

    def scored_on(self, task: str) -> str:
        """Return the part that the task's rows are of, `dev` or `test`."""
        return self._any(task).scored_on.get(task, "dev")

    def targets(self, task: str) -> np.ndarray:
        """Return the task's targets, `[rows]`: the same in all records."""
        return self._any(task).targets[task]

    def predictions(self, method: str, seed: int, task: str) -> np.ndarray:
        """Return a run's predictions of the task, `[rows]`."""
        return self.cells[method, seed, task].predictions[task]

    def _any(self, task: str) -> RunRecord:
        return self.cells[self.methods[0], self.seeds[0], task]


def arrange(records: Sequence[RunRecord], methods: Sequence[str], tasks: Sequence[str]) -> Grid:
    """Arrange the records of a study. Records of methods or tasks that are not asked for are left out.

    Raises:
        UserError: A record is missing or there twice, or the records of a task were evaluated on different
            rows, with different metrics, or with a metric that their predictions do not give.
    """
    assert len(set(methods)) == len(methods), methods
    assert len(set(tasks)) == len(tasks), tasks
    for method in ("single", "joint"):
        if method not in methods:
            raise UserError(
                f"the study has no method `{method}`",
                expected="`single`, `joint` and the rules to compare",
                found=", ".join(methods) or "no method",
                todo=f"add `{method}`: the gap and the differences are measured from it",
            )
    if not tasks:
        raise UserError("the study has no task", expected="one or more", found="none", todo="name the tasks")
    cells: dict[tuple[str, int, str], RunRecord] = {}
    for method, task, record in _wanted(records, methods, tasks):
        key = (method, record.seed, task)
        if key in cells:
            raise UserError(
                f"two records of {_name(*key)}",
                expected="one run for each method, seed and task",
                found="two or more",
                todo="remove one of the two run folders",
            )
        cells[key] = record
    seeds = sorted({seed for _, seed, _ in cells})
    _check_complete(cells, methods, seeds, tasks)
    for task in tasks:
        _check_same(task, [record for (_, _, name), record in cells.items() if name == task])
    values = [[[_value(cells[m, s, t], t) for t in tasks] for s in seeds] for m in methods]
    return Grid(tuple(methods), tuple(seeds), tuple(tasks), cells, np.array(values))


def _wanted(
    records: Sequence[RunRecord], methods: Sequence[str], tasks: Sequence[str]
) -> Iterator[tuple[str, str, RunRecord]]:
    for record in records:
        if record.method in methods:
            for task in record.tasks:
                if task in tasks:
                    yield record.method, task, record


def _check_complete(
    cells: dict[tuple[str, int, str], RunRecord], methods: Sequence[str], seeds: list[int], tasks: Sequence[str]
) -> None:
    missing = [_name(m, s, t) for m in methods for s in seeds for t in tasks if (m, s, t) not in cells]
    if missing or not seeds:
        listed = "; ".join(missing[:8]) + (f"; and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise UserError(
            "the study is not complete",
            expected=f"{len(methods)} methods × {len(seeds)} seeds × {len(tasks)} tasks",
            found=f"no record of {listed}" if missing else "no record at all",
            todo="run `ortholora compare` again with the same output folder: finished runs are kept",
        )


def _check_same(task: str, records: list[RunRecord]) -> None:
    first = records[0]
    for other in records[1:]:
        if not np.array_equal(first.targets[task], other.targets[task]):
            what = "evaluated on different rows"
            found = f"{len(first.targets[task])} and {len(other.targets[task])} rows with different targets"
        elif first.metric_names[task] != other.metric_names[task]:
            what = "evaluated with different metrics"
            found = f"{first.metric_names[task]} and {other.metric_names[task]}"
        elif first.num_labels[task] != other.num_labels[task]:
            what = "trained with different numbers of labels"
            found = f"{first.num_labels[task]} and {other.num_labels[task]}"
        else:
            continue
        runs = f"{first.method}, seed {first.seed}, and {other.method}, seed {other.seed}"
        raise UserError(
            f"task `{task}`: runs {what}",
            expected="the same for all runs of a study",
            found=f"{found} ({runs})",
            todo="use a new output folder: the data or the configuration changed between the runs",
        )


def _value(record: RunRecord, task: str) -> float:
    """Compute the metric from the predictions, and hold the recorded one to it."""
    metric = record.metric_names[task]
    value = compute(metric, record.targets[task], record.predictions[task], record.num_labels[task])
    if not abs(value - record.metrics[task]) <= _METRIC_TOLERANCE:
        raise UserError(
            f"record of {_name(record.method, record.seed, task)}: metric and predictions do not belong together",
            expected=f"{metric} {value:.6f}, which the predictions give",
            found=f"{record.metrics[task]}",
            todo="delete result.json in the run's folder and start the same command again",
        )
    return value


def _name(method: str, seed: int, task: str) -> str:
    return f"{method}, seed {seed}, task {task}"
