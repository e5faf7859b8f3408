"""Where in the network tasks conflict, how surely, and how that changed over the training; over the seeds of a method.

Every cell is a mean over steps of the cosine of two tasks' gradients, so it is smaller than the cosine of the gradients
without their noise. Its sign is right where it is called sure: among all cells of a map at most one in twenty of those
is expected to be wrong (false-discovery rate, Benjamini and Hochberg 1995).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from ortholora.trainers.history import ConflictHistory
from ortholora.trainers.windows import mean_and_error

#: The rate of false discoveries among what is called sure.
RATE = 0.05
#: More layers than these share columns; the periods of a training that are shown.
MOST_COLUMNS, PERIODS = 16, 8
EVERYTHING = "all"

#: Value and whether its sign is sure; None where nothing was seen.
Found = tuple[float, bool] | None


@dataclass(frozen=True)
class Map:
    """A table of means.

    Attributes:
        groups: Group of columns (`all`, `A`, `B`, …) → names of the columns.
        rows: Name of a row → its cells over all columns.
    """

    groups: dict[str, list[str]]
    rows: dict[str, list[Found]]


def conflict_map(histories: Sequence[ConflictHistory]) -> Map:
    """Mean cosine of every pair of tasks: of everything, and of each layer's A and B."""
    return _map(histories, "cosines", _pair_names(histories[0]))


def size_map(histories: Sequence[ConflictHistory]) -> Map:
    """Length of every task's gradient over the geometric mean of all, as logarithms to base 2; never unsure."""
    found = _map(histories, "lengths", list(histories[0].tasks))
    rows = list(found.rows.values())
    for column in range(len(rows[0])):
        logs = [row[column][0] for row in rows if row[column] is not None]  # type: ignore[index]
        middle = sum(logs) / len(logs) if logs else 0.0
        for row in rows:
            cell = row[column]
            row[column] = None if cell is None else ((cell[0] - middle) / math.log(2), True)
    return found


def over_time(histories: Sequence[ConflictHistory]) -> Map:
    """Mean cosine of every pair's whole gradients in up to `PERIODS` equal parts of the training."""
    history = histories[0]
    edges = _periods(history)
    names = _pair_names(history)
    columns = [f"–{int(history.steps[:stop].sum())}" for _, stop in edges]
    cells = [
        [_over_seeds([_means(h, "cosines", [-1], slice(*edge)) for h in histories], p) for edge in edges]
        for p in range(len(names))
    ]
    return Map({"up to step": columns}, _judge(names, cells))


@dataclass(frozen=True)
class Line:
    """A figure over the steps: mean and range over the seeds, at the middle of each window."""

    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def size_lines(histories: Sequence[ConflictHistory]) -> dict[str, Line]:
    """Length of every task's whole gradient over the geometric mean of all, over the steps."""

    def relative(history: ConflictHistory) -> np.ndarray:
        lengths = history.lengths[:, -1]
        return np.exp(lengths - np.nanmean(lengths, axis=1, keepdims=True))

    return _lines(histories, relative, list(histories[0].tasks))


def cosine_lines(histories: Sequence[ConflictHistory]) -> dict[str, Line]:
    """Mean cosine of every pair's whole gradients over the steps."""
    return _lines(histories, lambda history: history.cosines[:, -1], _pair_names(histories[0]))


def _lines(
    histories: Sequence[ConflictHistory], figures: Callable[[ConflictHistory], np.ndarray], names: list[str]
) -> dict[str, Line]:
    windows = min(len(history.steps) for history in histories)
    same = [h for h in histories if np.array_equal(h.steps[:windows], histories[0].steps[:windows])]
    values = np.stack([figures(history)[:windows] for history in same])  # [seeds, W, names]
    steps = histories[0].steps[:windows]
    middles = np.cumsum(steps) - (steps - 1) / 2
    found = {}
    for index, name in enumerate(names):
        there = np.isfinite(values[:, :, index]).all(0)
        own = values[:, there, index]
        if own.size:
            found[name] = Line(middles[there].tolist(), *(f(own, axis=0).tolist() for f in (np.mean, np.min, np.max)))
    return found


def _pair_names(history: ConflictHistory) -> list[str]:
    return [f"{a} · {b}" for a, b in history.pairs]


def _map(histories: Sequence[ConflictHistory], kind: str, names: list[str]) -> Map:
    groups = _columns(histories[0].blocks)
    everything = [[_over_seeds([_means(h, kind, [-1]) for h in histories], i)] for i in range(len(names))]
    rest = [
        [
            _over_seeds([_means(h, kind, blocks) for h in histories], i)
            for columns in groups.values()
            for blocks in columns.values()
        ]
        for i in range(len(names))
    ]
    whole, cells = _judge(names, everything), _judge(names, rest)
    shown = {EVERYTHING: [EVERYTHING], **{group: list(columns) for group, columns in groups.items()}}
    return Map(shown, {name: whole[name] + cells[name] for name in names})


def _columns(blocks: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Group → column → blocks: by the matrices' role, and by the first number in their name, which is the layer's."""
    placed: dict[str, dict[int, list[int]]] = {}
    for index, name in enumerate(blocks):
        if name == EVERYTHING:
            continue
        role = re.search(r"lora_(?:embedding_)?([AB])\b", name)
        layer = re.search(r"\.(\d+)\.", f".{name}.")
        group = role[1] if role else "layer"
        placed.setdefault(group, {}).setdefault(int(layer[1]) if layer else -1, []).append(index)
    numbers = sorted({layer for layers in placed.values() for layer in layers})
    size = -(-len(numbers) // MOST_COLUMNS)
    bins = [numbers[start : start + size] for start in range(0, len(numbers), max(1, size))]
    return {
        group: {
            _bin_name(members): found
            for members in bins
            if (found := [index for layer in members for index in layers.get(layer, [])])
        }
        for group, layers in sorted(placed.items())
    }


def _bin_name(layers: list[int]) -> str:
    names = ["other" if layer < 0 else str(layer) for layer in layers]
    return names[0] if len(names) == 1 else f"{names[0]}–{names[-1]}"


#: Of every figure: mean, standard error, windows. `[names]` each.
_Means = tuple[np.ndarray, np.ndarray, np.ndarray]


def _means(history: ConflictHistory, kind: str, blocks: list[int], windows: slice = slice(None)) -> _Means:
    """Mean over the blocks and the windows, from the means of the windows over the blocks."""
    values = getattr(history, kind)[windows][:, blocks].astype(float)
    counts = getattr(history, kind.removesuffix("s") + "_steps")[windows][:, blocks].astype(float)
    together = counts.sum(1)
    with np.errstate(invalid="ignore"):
        by_window = np.where(counts > 0, values * counts, 0.0).sum(1) / together
    mean, error = mean_and_error(by_window, together / len(blocks))
    return mean, error, (together > 0).sum(0)


def _over_seeds(parts: Sequence[_Means], index: int) -> tuple[float, float] | None:
    """Mean over the seeds, and the chance of one so far from zero (NaN where that is not known)."""
    found = [(m[index], e[index], w[index]) for m, e, w in parts if np.isfinite(m[index])]
    if not found:
        return None
    means, errors = np.array([m for m, _, _ in found]), np.array([e for _, e, _ in found])
    error = float(np.sqrt((errors**2).sum())) / len(found)
    if len(found) > 1:  # what steps of one run hide, seeds tell
        error = max(error, float(means.std(ddof=1)) / math.sqrt(len(found)))
    freedom = sum(max(0, int(w) - 1) for _, _, w in found)
    mean = float(means.mean())
    if not math.isfinite(error) or freedom < 1:
        return mean, math.nan
    if error == 0.0:
        return mean, float(mean == 0.0)
    return mean, float(2 * student.sf(abs(mean) / error, freedom))


def _judge(names: list[str], cells: list[list[tuple[float, float] | None]]) -> dict[str, list[Found]]:
    """Call cells sure, all cells together."""
    chances = np.array([1.0 if cell is None or math.isnan(cell[1]) else cell[1] for row in cells for cell in row])
    sure = iter((false_discovery_control(chances) <= RATE).tolist() if len(chances) else [])
    judged: dict[str, list[Found]] = {}
    for name, row in zip(names, cells, strict=True):
        marks = [next(sure) for _ in row]
        judged[name] = [None if cell is None else (cell[0], mark) for cell, mark in zip(row, marks, strict=True)]
    return judged


def _periods(history: ConflictHistory) -> list[tuple[int, int]]:
    windows = len(history.steps)
    count = min(PERIODS, max(1, windows // 2))  # two windows at least, for an error
    edges = [round(windows * i / count) for i in range(count + 1)]
    return list(pairwise(edges))
