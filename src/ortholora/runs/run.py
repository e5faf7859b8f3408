"""A run: which method trains which tasks with which seed, and in which folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ortholora.config.choose import keep
from ortholora.config.schema import Config
from ortholora.models.merge import Merge
from ortholora.runs.method import SINGLE, Method
from ortholora.runs.record import RESULT_FILE

#: In the folder of a run that tries settings out: they made the loss infinite.
DIVERGED_FILE = "diverged.json"


@dataclass(frozen=True)
class Run:
    """One run of a command; everything that is done for it takes this object.

    Attributes:
        method: What it does with the task gradients.
        tasks: The tasks it trains: one for `single`.
        seed: Seed of weights, dropout, data order and visit orders.
        folder: Where model, result and checkpoints go.
        trial: What it tries out, for people; empty for a run that counts.
        sources: The single runs that it merges, one a task; none for a run that trains.
        out: The folder of the command that it is part of; None: its own.
    """

    method: Method
    tasks: tuple[str, ...]
    seed: int
    folder: Path
    trial: str = ""
    sources: tuple[Run, ...] = ()
    out: Path | None = None

    @property
    def title(self) -> str:
        """What it is called where many runs are listed: the command's folder, and the way from there to its own."""
        out = self.folder if self.out is None else self.out
        below = self.folder.relative_to(out).parts
        return "/".join([out.resolve().name, *(below[1:] if below[:1] == ("runs",) else below)])

    @property
    def label(self) -> str:
        """For people."""
        few = self.method.name == SINGLE or self.method.groups is not None
        task = f" · {', '.join(self.tasks)}" if few else ""
        trial = f" · {self.trial}" if self.trial else ""
        return f"{self.method.name}{task}{trial} · seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the run's result is there."""
        return (self.folder / RESULT_FILE).is_file()

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do for it: finished, or settings that were tried and diverged."""
        return self.finished or (bool(self.trial) and (self.folder / DIVERGED_FILE).is_file())

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    def own_config(self, config: Config) -> Config:
        """The configuration with which `train` would repeat this run alone."""
        return keep(config, self.tasks).model_copy(
            update={
                "rule": self.method.rule or "sum",
                "block": self.method.block,
                "seed": self.seed,
            }
        )


def how_merged(run: Run, config: Config) -> Merge:
    """The kind of merge of a run with sources, and its settings."""
    assert run.method.merge is not None
    return Merge.of(run.method.merge, config.study.merge, run.tasks)


def settings_of_sources(run: Run) -> dict[str, dict[str, Any]]:
    """Task → the settings of its own that the single adapter was trained with."""
    return {source.tasks[0]: source.method.overrides for source in run.sources}
