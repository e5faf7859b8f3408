"""Where the runs of a study are done: in this process, in several of this machine, or in a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ortholora.cli.console import aside, say
from ortholora.errors import UserError

if TYPE_CHECKING:
    from ortholora.study.jobs.pool import Workers


def jobs_for_small_runs() -> int:
    """Two, where there are two cores: a small run on two threads is much slower than two runs on one each."""
    return min(2, os.cpu_count() or 1)


@dataclass(frozen=True)
class Where:
    """What `compare` is told about it, as it was typed.

    Attributes:
        jobs: --jobs.
        on: --on.
        gpus: --gpus-per-run.
        cpus: --cpus-per-run.
    """

    jobs: int | None = None
    on: str | None = None
    gpus: float | None = None
    cpus: int = 1

    def check(self) -> None:
        """Check what needs no cluster, before any data is read.

        Raises:
            UserError: --on is no address, its extra is missing, or an option goes with it that is not there.
        """
        if self.gpus is not None and not (self.gpus in range(65) or 0.01 <= self.gpus < 1):
            raise UserError(
                "--gpus-per-run cannot be",
                expected="a whole number from 0 to 64, or a part of one GPU from 0.01 on",
                found=str(self.gpus),
                todo="correct the option",
            )
        if self.on is not None:
            from ortholora.study.jobs.ray_cluster import check_on

            check_on(self.on)
        elif self.gpus is not None or self.cpus != 1:
            raise UserError(
                "--gpus-per-run and --cpus-per-run say what a run takes of a cluster",
                expected="--on beside them",
                found="no --on",
                todo="give --on ray, or use --jobs, which divides this machine by itself",
            )

    @contextmanager
    def workers(self, out: Path) -> Iterator[Workers | None]:
        """The workers of a cluster, while it is needed; None: those of this machine. Says how many there are.

        Args:
            out: The folder of the study.

        Raises:
            UserError: The cluster does not answer, or has no room.
        """
        if self.on is None:
            self._say_how_shared()
            yield None
            return
        from ortholora.study.jobs.ray_cluster import ray_workers
        from ortholora.study.jobs.ray_workers import Resources

        with (
            aside().status("Asking the cluster") as asking,
            ray_workers(self.on, out, self.jobs, Resources(self.cpus, self.gpus)) as workers,
        ):
            asking.stop()
            say(str(workers))
            yield workers

    def _say_how_shared(self) -> None:
        if (self.jobs or 1) > 1:
            from ortholora.study.jobs.sharing import divide_this_machine, how_shared

            say(how_shared(divide_this_machine(self.jobs or 1)))
