"""Work for worker processes that starts at once: it imports no torch."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from ortholora.errors import UserError
from ortholora.study.jobs.worker import Relay, Work


@dataclass(frozen=True)
class Toy:
    """Items that leave a file with what they saw, or do what they are told instead.

    Attributes:
        folder: Where the files go.
        told: Item → `fail`, `crash`, `no_room`, `die`, `terminate`, or `stop` (let the parent be interrupted).
        endless: Items that take steps until they are asked to stop.
        loading: Seconds before the first item.
    """

    folder: Path
    told: dict[int, str] = field(default_factory=dict)
    endless: tuple[int, ...] = ()
    loading: float = 0.0

    def __call__(self) -> Work:
        if self.loading:
            (self.folder / "loading").touch()
            time.sleep(self.loading)
        return self.do

    def do(self, item: int, progress: Relay) -> bool:
        progress.start(f"item {item}", 2, 0)
        if item in self.endless:
            (self.folder / f"begun-{item}").touch()
        if item in self.told:
            self._wait_for_the_endless()
            getattr(self, self.told[item])()
        steps = 0
        while steps < 2 or item in self.endless:
            steps += 1
            progress.step(steps)
            if progress.stop_requested:
                (self.folder / f"stopped-{item}").touch()
                return False
            time.sleep(0.01)
        seen = [str(os.getpid()), os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "-")]
        (self.folder / f"done-{item}").write_text(" ".join(seen))
        progress.finish(f"item {item}", {"task": 0.5})
        return True

    def _wait_for_the_endless(self) -> None:
        while not all((self.folder / f"begun-{item}").exists() for item in self.endless):
            time.sleep(0.01)

    def fail(self) -> None:
        raise UserError("a wrong setting", expected="right", found="wrong", todo="correct it")

    def crash(self) -> None:
        raise ZeroDivisionError("our own mistake")

    def no_room(self) -> None:
        raise OSError(28, "No space left on device", "some/file")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def terminate(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        os.kill(os.getppid(), signal.SIGINT)
