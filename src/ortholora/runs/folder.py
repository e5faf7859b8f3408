"""The small files that make a folder a run: whose it is, and its configuration."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ortholora.config.file import dump_config, load_config
from ortholora.config.schema import Config
from ortholora.errors import UserError
from ortholora.trainers.checkpoints import checkpoints

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"


def claim_folder(out: Path, fingerprint: str, config: Config) -> None:
    """Make the folder this run's own, or check that it is.

    Args:
        out: The folder.
        fingerprint: Hash of all that decides the run's outcome.
        config: The run's own configuration, to say what differs.

    Raises:
        UserError: The folder holds a run with other settings or other data, or files of somebody else.
    """
    path = out / RUN_FILE
    if not path.is_file():
        _refuse_foreign(out)
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
        return
    found = _read(path).get("fingerprint", "none")
    if found != fingerprint and _has_work(out):
        raise UserError(
            f"{out} holds a run with other settings or other data",
            expected="an empty folder, or one that this very run was started in before",
            found=_differences(out / CONFIG_FILE, config),
            todo="give another --out, or delete the folder",
        )


def describe(out: Path, fingerprint: str, config: Config, base: Path | None) -> None:
    """Keep the run's own configuration beside it, and where its data files are, for `evaluate`."""
    (out / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    place = str(base.resolve()) if base else None
    content = {**_read(out / RUN_FILE), "fingerprint": fingerprint, "data_base": place}
    (out / RUN_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def disclaim(out: Path) -> None:
    """Take back `claim_folder` and `describe` for a run that was refused; not where something was trained."""
    if _has_work(out):
        return
    for name in (RUN_FILE, CONFIG_FILE):
        (out / name).unlink(missing_ok=True)
    for folder in (out / "checkpoints", out):
        with suppress(OSError):  # not there, or not empty
            folder.rmdir()


def note_jobs(out: Path, jobs: int) -> int:
    """Keep with a claimed folder how many runs shared the machine, over all the sittings it takes to finish.

    Returns:
        The most of any sitting.
    """
    content = _read(out / RUN_FILE)
    before = content.get("jobs", 1)
    if jobs > before:
        (out / RUN_FILE).write_text(json.dumps({**content, "jobs": jobs}) + "\n", encoding="utf-8")
    return max(jobs, before)


def data_base(out: Path) -> Path:
    """The folder that the run's data files were relative to."""
    base = _read(out / RUN_FILE).get("data_base")
    return Path(base) if base else out


def _has_work(out: Path) -> bool:
    """Whether anything was reached that a corrected setting must not be mixed with, or would lose."""
    return bool(checkpoints(out / "checkpoints")) or any(
        (out / name).exists() for name in ("adapter_model.safetensors", "result.json")
    )


def _differences(path: Path, config: Config) -> str:
    """Name the settings that differ, "there" in the folder and "here" in the command."""
    try:
        other = load_config(path)
    except UserError:
        return f"a run whose settings cannot be compared ({path.name} is missing or damaged)"
    if other.task_names != config.task_names:
        return f"the tasks {', '.join(other.task_names)} there, {', '.join(config.task_names)} here"
    there = _flat(other.model_dump(mode="json", exclude={"study"}))
    here = _flat(config.model_dump(mode="json", exclude={"study"}))
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if not keys:
        return "the same settings, but other rows in the data files, or another mixture of tasks in a step"
    shown = [f"{key} = {there.get(key)!r} there, {here.get(key)!r} here" for key in keys[:4]]
    return "; ".join(shown) + (f"; and {len(keys) - 4} more" if len(keys) > 4 else "")


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Settings by dotted key; a task by its name."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {item["name"]: item for item in value}
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {k: v for name, item in value.items() for k, v in _flat(item, f"{key}.{name}" if key else name).items()}


def _refuse_foreign(out: Path) -> None:
    """A run must not be mixed into a folder that holds something else; an unfinished start is fine."""
    if out.is_file():
        raise UserError(f"{out} is a file", expected="a folder", found="a file", todo="give another --out")
    for name in ("adapter_config.json", "summary.json", "config.json"):
        if (out / name).exists():
            raise UserError(
                f"{out} holds something else",
                expected="an empty folder, or one that this very run was started in before",
                found=f"{name}, but no {RUN_FILE}",
                todo="give another --out",
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
