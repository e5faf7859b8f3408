"""Where a number comes from: versions, commit, hardware, data, configuration."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ortholora.config.later import without_later
from ortholora.config.schema import Config
from ortholora.config.tasks.union import recorded
from ortholora.data.task import TaskData
from ortholora.models.starting import digest_of
from ortholora.version import __version__ as VERSION

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn", "scipy", "numpy")


def provenance(config: Config, tasks: Sequence[TaskData]) -> dict[str, Any]:
    """Everything needed to repeat or to judge a result; paths only as the configuration gives them."""
    source = config.init_from
    return {
        **({} if source is None else {"init_from": {"run": source, "sha256": digest_of(Path(source))}}),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "data": {task.name: {**task.sources, "rows": _rows(task)} for task in tasks},
        "dropped_rows": {
            task.name: {part: len(rows) for part, rows in task.dropped.items()} for task in tasks if task.dropped
        },
        "config": {**config.model_dump(mode="json"), "tasks": [recorded(task) for task in config.tasks]},
    }


def fingerprint(config: Config, tasks: Sequence[TaskData], extra: dict[str, Any]) -> str:
    """A hash of all that decides a run's outcome: settings and data, not where or when it ran."""
    settings = config.model_dump(mode="json", exclude={"study": True, "seed": True, "rule": True, "block": True})
    del settings["tasks"], settings["init_from"]
    settings = comparable(settings)
    settings = {section: without_later(section, value) for section, value in settings.items()}
    if config.init_from is not None:
        extra = {**extra, "init_from": digest_of(Path(config.init_from))}
    named = {task.name: [_no_places(recorded(task.spec)), _hashes(task)] for task in tasks}
    return sha256_of({"settings": settings, "tasks": named, **extra})


def comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of trackers, which change no result; TensorBoard's is kept, as in earlier versions."""
    training = dict(settings["training"])
    training["tensorboard"] = "tensorboard" in training.pop("report_to")
    return {**settings, "training": training}


def _rows(task: TaskData) -> list[int]:
    """Training, dev and, where there are some, test rows."""
    return [len(split) for split in (task.train, task.dev, task.test) if split is not None]


def _hashes(task: TaskData) -> dict[str, str]:
    return {part: source.rpartition("sha256:")[2] for part, source in task.sources.items()}


def _no_places(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _PLACES}


#: Where rows come from does not matter to a run; their hash does.
_PLACES = {"train", "dev", "test", "hub", "package", "bad_rows", "max_bad_rows"}


def sha256_of(data: Any) -> str:
    """Hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of what decides the numbers."""
    found = {"python": platform.python_version(), "ortholora": VERSION}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """Commit of the source tree this code runs from (`+changes` if it differs), or None if installed."""
    here = Path(__file__).resolve().parent
    try:
        # An installed copy may lie inside somebody else's repository (project/.venv): not its commit.
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if dirty else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores, threads, memory and GPU."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        found["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
