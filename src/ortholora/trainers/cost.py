"""What a run costs: time of an optimizer step, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepTimer(TrainerCallback):
    """Seconds of every optimizer step, from the first forward to the optimizer's update (data excluded)."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._start = _now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock."""
        if self._start is not None:
            self.seconds.append(_now() - self._start)
            self._start = None

    @property
    def median(self) -> float:
        """Median seconds of a step; 0 before the first."""
        return statistics.median(self.seconds) if self.seconds else 0.0


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak_memory() -> None:
    """Start a new measurement of the peak.

    On the CPU the process's high-water mark is reset (Linux), after freed memory went back to the system:
    otherwise a run would inherit the peak of the run before it.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int | None:
    """Peak since `reset_peak_memory`: allocated on the GPU, or resident in RAM; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _kilobytes("/proc/self/status", "VmHWM:")


def memory_bytes() -> int | None:
    """What is in use now: allocated on the GPU, or resident in RAM; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _kilobytes("/proc/self/status", "VmRSS:")


def available_memory_bytes() -> int | None:
    """What this process could have if it were the first thing in memory; None where unknown.

    On a GPU: what is free there, and what this process holds. On the CPU: what the system calls available, and what is
    resident, at most the limit of the container.
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    free, own = _kilobytes("/proc/meminfo", "MemAvailable:"), memory_bytes()
    if free is None or own is None:
        return None
    limit = free + own
    with suppress(OSError, ValueError):  # ValueError: "max", no limit
        limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return limit


def _kilobytes(path: str, key: str) -> int | None:
    """The value of a line in one of the kernel's tables, in bytes."""
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None
