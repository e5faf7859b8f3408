"""A finished run on disk: `result.json` and `predictions.npz` in the run's folder.

`result.json` is written last and at once: where it exists, the run is finished and everything else is there.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ortholora.errors import UserError
from ortholora.files import replace_file
from ortholora.runs.plain import plain, to_json

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"
#: Number of the file format; a reader refuses any other.
FORMAT = 2
#: Key → the types it may have in `result.json`.
_FIELDS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "rule": (str, type(None)),
    "block": (str, type(None)),
    "seed": (int,),
    "tasks": (list,),
    "metrics": (dict,),
    "metric_names": (dict,),
    "num_labels": (dict,),
    "step_seconds": (int, float, type(None)),
    "peak_memory_bytes": (int,),
    "padding": (int, float),
    "micro_batches": (int, float),
    "details": (dict,),
    "conflict": (dict, type(None)),
    "provenance": (dict,),
}


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What one run of one method with one seed left behind.

    Attributes:
        method: Name of the method in the study: `single`, `joint`, `ortho`, …
        rule: The rule that resolved conflicts; `None` where there was none to resolve.
        block: What conflict was judged on; `None` with no rule.
        seed: Seed of the run.
        tasks: The tasks the run trained: one for `single`, all for every other method.
        metrics: Task → its main metric on dev, as a fraction.
        metric_names: Task → name of that metric.
        targets: Task → class indices or regression targets of the dev rows, `[rows]`.
        predictions: Task → predicted class indices or values, `[rows]`.
        num_labels: Task → number of classes; `None` for regression.
        step_seconds: Time of one optimizer step, in seconds.
        peak_memory_bytes: Largest memory of the run, in bytes; 0 where it was not measured.
        padding: Share of the trained tokens that were padding.
        micro_batches: Mean number of micro-batches of a step.
        details: Task → every metric that fits it, by name.
        conflict: Figures on the conflict between tasks, as the engine reports them.
        provenance: Where the result came from: hardware, versions, data. Plain JSON data.
    """

    method: str
    rule: str | None
    block: str | None
    seed: int
    tasks: tuple[str, ...]
    metrics: dict[str, float]
    metric_names: dict[str, str]
    targets: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    num_labels: dict[str, int | None]
    step_seconds: float
    peak_memory_bytes: int
    padding: float = 0.0
    micro_batches: float = 1.0
    details: dict[str, dict[str, float]] = field(default_factory=dict)
    conflict: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record; the folder is made if need be.

    Args:
        folder: The run's folder.
        record: The record.
    """
    content = plain({"format": FORMAT, **{name: getattr(record, name) for name in _FIELDS}})
    arrays: dict[str, Any] = {}
    for task in record.tasks:
        arrays[f"{task}/target"] = np.asarray(record.targets[task])
        arrays[f"{task}/prediction"] = np.asarray(record.predictions[task])
    folder.mkdir(parents=True, exist_ok=True)
    # A crash from here on must not leave an older result beside newer predictions.
    (folder / RESULT_FILE).unlink(missing_ok=True)
    replace_file(folder / PREDICTIONS_FILE, lambda stream: np.savez_compressed(stream, **arrays))
    replace_file(folder / RESULT_FILE, lambda stream: stream.write(to_json(content)))


def read_record(folder: Path) -> RunRecord:
    """Read a run's record.

    Args:
        folder: The run's folder.

    Returns:
        The record, arrays included.

    Raises:
        UserError: A file is missing, truncated or of another format.
    """
    content = _read_json(folder / RESULT_FILE)
    arrays = _read_arrays(folder / PREDICTIONS_FILE)
    tasks = tuple(content["tasks"])
    targets: dict[str, np.ndarray] = {}
    predictions: dict[str, np.ndarray] = {}
    for task in tasks:
        for key, into in ((f"{task}/target", targets), (f"{task}/prediction", predictions)):
            if key not in arrays:
                raise _unreadable(folder / PREDICTIONS_FILE, f"an array `{key}`", f"{sorted(arrays)}")
            into[task] = arrays[key]
        if targets[task].shape != predictions[task].shape or targets[task].ndim != 1:
            found = f"{targets[task].shape} targets and {predictions[task].shape} predictions"
            raise _unreadable(folder / PREDICTIONS_FILE, f"one prediction per row of `{task}`", found)
    values = {name: content[name] for name in _FIELDS}
    values["tasks"] = tasks
    values["metrics"] = {task: _number(content["metrics"][task]) for task in tasks}
    values["step_seconds"] = _number(content["step_seconds"])
    return RunRecord(targets=targets, predictions=predictions, **values)


def _number(value: float | None) -> float:
    """Undo what JSON cannot hold: null was NaN or infinite."""
    return math.nan if value is None else float(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _unreadable(path, "a finished run (`result.json` is written last)", "no such file") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, "a JSON file", str(error)) from None
    if not isinstance(content, dict):
        raise _unreadable(path, "a JSON object", type(content).__name__)
    if content.get("format") != FORMAT:
        raise _unreadable(path, f"`format`: {FORMAT}", f"{content.get('format')!r}")
    for name, types in _FIELDS.items():
        # bool is an int to Python, but never what these keys mean.
        if name not in content or not isinstance(content[name], types) or isinstance(content[name], bool):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            found = repr(content[name])[:80] if name in content else "no such key"
            raise _unreadable(path, f"key `{name}` with a value of type {wanted}", found)
    _check_tasks(path, content)
    return content


def _check_tasks(path: Path, content: dict[str, Any]) -> None:
    if not all(isinstance(task, str) for task in content["tasks"]):
        raise _unreadable(path, "`tasks`: a list of names", repr(content["tasks"])[:80])
    kinds: dict[str, tuple[type, ...]] = {
        "metrics": (int, float, type(None)),
        "metric_names": (str,),
        "num_labels": (int, type(None)),
    }
    for name, types in kinds.items():
        for task in content["tasks"]:
            if task not in content[name] or not isinstance(content[name][task], types):
                raise _unreadable(path, f"`{name}` of task `{task}`", repr(content[name])[:80])


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise _unreadable(path, "the predictions of the run", "no such file") from None
    # AttributeError and TypeError: np.load returns a bare array for a file that is one.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise _unreadable(path, "an .npz file of arrays", str(error) or type(error).__name__) from None


def _unreadable(path: Path, expected: str, found: str) -> UserError:
    return UserError(
        f"cannot read {path}",
        expected=expected,
        found=found,
        todo=f"delete the folder {path.parent} and run again; finished runs are kept",
    )
