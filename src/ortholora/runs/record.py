"""A finished run on disk: `result.json` and `predictions.npz` in the run's folder.

`result.json` is written last and at once: where it exists, the run is finished and everything else is there.
Both files follow from the fields of `RunRecord`; a new field needs no line anywhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from ortholora.config.stored import problem_of
from ortholora.errors import UserError
from ortholora.files import replace_file, write_json
from ortholora.runs.arrays import UNREADABLE, load_arrays

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"
#: Number of the file format; a reader refuses any other.
FORMAT = 2
#: JSON cannot hold NaN and infinities: they are written as null.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]

# What the definition says of a field beside its type: it has a value of every task, or its arrays, one a task, are
# stored in the other file under this name.
_EVERY_TASK, _ARRAY = "every task", "array"
# Or it is missing from what earlier versions wrote, and then has its default.
_LATER = "later"

#: Points of a curve: optimizer step and value.
Curve = list[tuple[int, Number]]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What one run of one method with one seed left behind.

    Attributes:
        method: Name of the method in the study: `single`, `joint`, `ortho`, …
        rule: The rule that resolved conflicts; `None` where there was none to resolve.
        block: What conflict was judged on; `None` with no rule.
        seed: Seed of the run.
        tasks: The tasks the run trained: one for `single`, all for every other method.
        metrics: Task → its main metric, as a fraction, on test rows where the task has some, else on dev.
        metric_names: Task → name of that metric.
        targets: Task → class indices or regression targets of the same rows, `[rows]`.
        predictions: Task → predicted class indices or values, `[rows]`.
        num_labels: Task → number of classes; `None` for regression.
        step_seconds: Median time of an optimizer step, in seconds.
        peak_memory_bytes: Largest memory of the run, in bytes; 0 where it was not measured.
        padding: Share of the trained tokens that were padding.
        micro_batches: Mean number of micro-batches of a step.
        details: Task → every metric that fits it, by name.
        conflict: Figures on the conflict between tasks, as the engine reports them; `None` without capture.
        provenance: Where the result came from: hardware, versions, data. Plain JSON data.
        curves: `loss`: task → its mean training loss between two logs. `metric`: task → its metric on dev at the
            evaluations during training.
        scored_on: Task → `dev` or `test`, the rows that `metrics` are of. Missing: dev.
        stopped: Task → the step after which its rows left the batch, of those that did (`patience_per_task`).
        dev_metrics: Task with test rows → its main metric on dev, to choose by.
    """

    method: str
    rule: str | None
    block: str | None
    seed: int
    tasks: tuple[str, ...]
    metrics: dict[str, Number] = field(metadata={_EVERY_TASK: True})
    metric_names: dict[str, str] = field(metadata={_EVERY_TASK: True})
    targets: dict[str, np.ndarray] = field(metadata={_ARRAY: "target"})
    predictions: dict[str, np.ndarray] = field(metadata={_ARRAY: "prediction"})
    num_labels: dict[str, int | None] = field(metadata={_EVERY_TASK: True})
    step_seconds: Number
    peak_memory_bytes: int
    padding: float = 0.0
    micro_batches: float = 1.0
    details: dict[str, dict[str, Number]] = field(default_factory=dict)
    conflict: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict, metadata={_LATER: True})
    scored_on: dict[str, str] = field(default_factory=dict, metadata={_LATER: True})
    dev_metrics: dict[str, Number] = field(default_factory=dict, metadata={_LATER: True})
    stopped: dict[str, int] = field(default_factory=dict, metadata={_LATER: True})


_ARRAYS = {entry.name: entry.metadata[_ARRAY] for entry in fields(RunRecord) if _ARRAY in entry.metadata}
_KEYS = [entry.name for entry in fields(RunRecord) if entry.name not in _ARRAYS]


def _stored_form() -> type[BaseModel]:
    """`result.json` as a pydantic model: every key must be there (or be new), with a value of the field's own type."""
    hints = get_type_hints(RunRecord, include_extras=True)
    keys: dict[str, Any] = {"format": (Literal[FORMAT], ...)}
    for entry in fields(RunRecord):
        if entry.name in _KEYS:
            default: Any = Field(default_factory=dict) if _LATER in entry.metadata else ...
            keys[entry.name] = (hints[entry.name], default)
    return create_model("Result", __config__=ConfigDict(strict=True), **keys)


_Stored = _stored_form()


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record; the folder is made if need be.

    Args:
        folder: The run's folder.
        record: The record.
    """
    arrays: dict[str, Any] = {
        f"{task}/{key}": np.asarray(getattr(record, name)[task])
        for task in record.tasks
        for name, key in _ARRAYS.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    # A crash from here on must not leave an older result beside newer predictions.
    (folder / RESULT_FILE).unlink(missing_ok=True)
    replace_file(folder / PREDICTIONS_FILE, lambda stream: np.savez_compressed(stream, **arrays))
    write_json(folder / RESULT_FILE, {"format": FORMAT, **{name: getattr(record, name) for name in _KEYS}})


def read_record(folder: Path) -> RunRecord:
    """Read a run's record.

    Args:
        folder: The run's folder.

    Returns:
        The record, arrays included.

    Raises:
        UserError: A file is missing, truncated or of another format.
    """
    values = _read_result(folder / RESULT_FILE)
    arrays: dict[str, Any] = _read_arrays(
        folder / PREDICTIONS_FILE, {task: values["num_labels"][task] for task in values["tasks"]}
    )
    return RunRecord(**values, **arrays)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        stored = _Stored.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise unreadable(path, "a finished run (`result.json` is written last)", "no such file") from None
    except ValidationError as error:
        raise unreadable(path, *problem_of(error)) from None
    except OSError as error:
        raise unreadable(path, "a JSON file", str(error)) from None
    values = {name: getattr(stored, name) for name in _KEYS}
    for entry in fields(RunRecord):
        for task in values["tasks"] if _EVERY_TASK in entry.metadata else ():
            if task not in values[entry.name]:
                raise unreadable(path, f"`{entry.name}` of task `{task}`", repr(values[entry.name])[:80])
    return values


def _read_arrays(path: Path, num_labels: dict[str, int | None]) -> dict[str, Any]:
    """The fields that are arrays, each by task."""
    stored = _load(path)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in _ARRAYS}
    for task, classes in num_labels.items():
        for name, key in _ARRAYS.items():
            if f"{task}/{key}" not in stored:
                raise unreadable(path, f"an array `{task}/{key}`", f"{sorted(stored)}")
            found[name][task] = stored[f"{task}/{key}"]
            _check_values(path, f"{task}/{key}", found[name][task], classes)
        shapes = {name: arrays[task].shape for name, arrays in found.items()}
        if len(set(shapes.values())) > 1 or len(shapes["targets"]) != 1:
            shown = " and ".join(f"{shape} {name}" for name, shape in shapes.items())
            raise unreadable(path, f"one prediction per row of `{task}`", shown)
    return found


def _check_values(path: Path, name: str, values: np.ndarray, classes: int | None) -> None:
    """Refuse what no run writes: other things than numbers, and classes that the task does not have."""
    if values.dtype.kind not in "iuf":
        raise unreadable(path, f"numbers in `{name}`", f"values of type {values.dtype}")
    if classes is not None and values.size and not (values.min() >= 0 and values.max() < classes):
        raise unreadable(path, f"classes from 0 to {classes - 1} in `{name}`", f"{values.min()} to {values.max()}")


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_arrays(path)
    except FileNotFoundError:
        raise unreadable(path, "the predictions of the run", "no such file") from None
    except UNREADABLE as error:
        raise unreadable(path, "an .npz file of arrays", str(error) or type(error).__name__) from None


def unreadable(path: Path, expected: str, found: str) -> UserError:
    """The message about a result that cannot be used."""
    return UserError(
        f"cannot read {path}",
        expected=expected,
        found=found,
        todo=f"delete only {path.parent / RESULT_FILE} and start the same command again: the run goes on from its last "
        "checkpoint; finished runs are kept",
    )
