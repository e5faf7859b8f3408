"""A study that is stopped, killed and gone on with; what its runs leave, and what they must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ortholora.runs.record import read_record
from tiny import tiny_config


def resumable(folder: Path, name: str, **sections: Any) -> Path:
    """Write a configuration that may be moved, with dropout and warm-up: a resume that forgets something shows."""
    training = {"steps": 5, "save_every": 2, "warmup_steps": 2}
    path = tiny_config(folder, name, lora={"dropout": 0.1}, training=training, **sections)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(str(folder / "backbone"), "backbone"), encoding="utf-8")
    return path


def write_study(folder: Path, name: str, methods: list[str]) -> list[str]:
    """Write a study of two tasks; return the command but for the folder of its `--out`."""
    path = resumable(folder, name, study={"methods": methods})
    return ["compare", path.name, "--tasks", "topic,score", "--out"]


def results(folder: Path, runs: list[str]) -> dict[str, object]:
    """All that runs left but for times, memory and where they were made: arrays and weights as bytes."""
    found: dict[str, object] = {}
    for run in runs:
        record = vars(read_record(folder / "runs" / run)).copy()
        for measured in ("step_seconds", "peak_memory_bytes", "provenance"):
            del record[measured]
        for arrays in ("targets", "predictions"):
            record[arrays] = {task: array.tobytes() for task, array in record[arrays].items()}
        files = (folder / "runs" / run).glob("*.safetensors")
        found[run] = (record, {path.name: path.read_bytes() for path in files})
    return found


def left_over(folder: Path) -> list[Path]:
    """Files of a work that was not finished."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in {".old", ".tmp"}]
