"""A progress that stops a run, and what a run leaves."""

from __future__ import annotations

from pathlib import Path

from ortholora.runs.progress import Silent


class StopAt(Silent):
    """Asks to stop after a step, and remembers where the run began."""

    def __init__(self, step: int) -> None:
        self.at, self.began = step, -1

    def start(self, label: str, steps: int, done: int) -> None:
        self.began = done

    def step(self, done: int) -> None:
        self.stop_requested = done >= self.at


def weights(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("adapter_model.safetensors", "heads.safetensors")]
