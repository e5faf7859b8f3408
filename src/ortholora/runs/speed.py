"""How fast a run goes, out of what the host knows anyway: nothing here waits for a device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Steps that a figure is the mean of.
_WINDOW = 50


@dataclass(frozen=True)
class Speed:
    """What is told of a run after a step.

    Attributes:
        rows: Rows a second, over the last steps; evaluations and checkpoints are not counted.
        tokens: Tokens a second, without padding.
        seconds: Seconds a step.
        loss: The loss that was logged last; None before the first log.
    """

    rows: float
    tokens: float
    seconds: float
    loss: float | None


class Meter:
    """Adds up the last steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)

    def add(self, seconds: float, rows: int, tokens: int) -> None:
        """Count a step; `rows` and `tokens` are those of the whole step, of all processes."""
        self._steps.append((seconds, rows, tokens))

    def speed(self, loss: float | None) -> Speed:
        """The mean over the last steps, of which there must be one."""
        seconds, rows, tokens = (sum(part) for part in zip(*self._steps, strict=True))
        seconds = max(seconds, 1e-9)
        return Speed(rows / seconds, tokens / seconds, seconds / len(self._steps), loss)
