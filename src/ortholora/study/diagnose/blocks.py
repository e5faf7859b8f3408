"""The figures of one point of the way, for all blocks: every matrix, every layer, all A, all B, and everything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ortholora.study.diagnose.direction import Direction, direction, ratio, surely
from ortholora.study.diagnose.noise import noise_per_row, spread
from ortholora.study.diagnose.products import Estimate, over_groups


def pair_name(a: str, b: str) -> str:
    """How a pair of tasks is called in the files."""
    return f"{a}~{b}"


def as_figure(estimate: Estimate, index: Any) -> dict[str, float]:
    """One entry of an estimate; what is not determined is NaN, which the files write as null."""
    parts = {"value": estimate.value, "error": estimate.error, "low": estimate.low, "high": estimate.high}
    return {name: float(values[index]) for name, values in parts.items()}


def figures_of_point(
    arrays: dict[str, np.ndarray], tasks: Sequence[str], weights: Sequence[float], rows: int, quota: Sequence[int]
) -> dict[str, Any]:
    """Judge a point.

    Args:
        arrays: What `training.py` kept of it.
        tasks: Names of the T tasks.
        weights: The weight with which each enters the loss.
        rows: Rows of a task in each micro-batch of the measurement.
        quota: Rows of each task in a step of the training.

    Returns:
        `losses`, `sizes`, `noise`, `pairs` (of the whole gradients), `parts` (all A, all B), and `layers` and
        `matrices`, where every figure is a list over the `blocks`.
    """
    # The gradient that a step adds up is that of the weighted loss.
    scale = np.asarray(weights, dtype=np.float64)
    gram = arrays["gram"].astype(np.float64) * scale[:, None, None] * scale
    whole = gram.sum(0, keepdims=True)
    losses = over_groups(arrays["losses"])
    return {
        "losses": {task: as_figure(losses, i) for i, task in enumerate(tasks)},
        **_sizes(whole, tasks, rows),
        "pairs": _pairs(whole, tasks, rows, quota),
        "parts": _blocks(*_added(gram, arrays["roles"]), tasks, rows),
        "layers": _blocks(*_added(gram, arrays["layers"]), tasks, rows),
        "matrices": _blocks(gram, [str(name) for name in arrays["names"]], tasks, rows),
    }


def _added(gram: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The inner products of each key's matrices together, in the order of first appearance."""
    names = list(dict.fromkeys(str(key) for key in keys))
    return np.stack([gram[keys == name].sum(0) for name in names]), names


def _sizes(whole: np.ndarray, tasks: Sequence[str], rows: int) -> dict[str, Any]:
    found, noise = direction(whole), noise_per_row(whole, rows)
    sizes: dict[str, Any] = {}
    for i, task in enumerate(tasks):
        determined = bool(found.determined[0, i])
        square = float(found.squares.value[0, i])
        sizes[task] = {
            "determined": determined,
            "length": float(np.sqrt(square)) if determined else None,
            "noise_rows": float(noise[0, i]) / square if determined else None,
        }
    return {"sizes": sizes, "noise": {task: float(noise[0, i]) for i, task in enumerate(tasks)}}


def _pairs(whole: np.ndarray, tasks: Sequence[str], rows: int, quota: Sequence[int]) -> dict[str, Any]:
    found, ratios, spreads = direction(whole), ratio(whole), spread(whole, rows)
    first, second = (part.tolist() for part in np.triu_indices(len(tasks), 1))
    sure = surely(found.products.p[0, first, second])
    needed = spreads.rows_needed()
    pairs: dict[str, Any] = {}
    for (a, b), is_sure in zip(zip(first, second, strict=True), sure, strict=True):
        own_rows = min(quota[a], quota[b])
        pairs[pair_name(tasks[a], tasks[b])] = {
            "product": as_figure(found.products, (0, a, b)),
            "p": float(found.products.p[0, a, b]),
            "sure": bool(is_sure),
            "cosine": as_figure(found.cosines, (0, a, b)) if np.isfinite(found.cosines.value[0, a, b]) else None,
            "log_ratio": as_figure(ratios, (0, a, b)) if found.determined[0, [a, b]].all() else None,
            # Of a sign that is not known there is no right one.
            "rows_needed": float(needed[0, a, b]) if is_sure else None,
            "right_at": [own_rows, float(spreads.right(own_rows)[0, a, b])] if is_sure else None,
        }
    return pairs


def _blocks(gram: np.ndarray, names: Sequence[str], tasks: Sequence[str], rows: int) -> dict[str, Any]:
    """Figures of every block, one list each; over all of them and all pairs the false discoveries are limited."""
    found, ratios = direction(gram), ratio(gram)
    first, second = (part.tolist() for part in np.triu_indices(len(tasks), 1))
    sure = surely(_judged(found)[:, first, second])
    squares = np.where(found.determined, found.squares.value, np.nan)
    lengths, noise = np.sqrt(squares), noise_per_row(gram, rows) / squares
    pairs = {}
    for position, (a, b) in enumerate(zip(first, second, strict=True)):
        both = found.determined[:, a] & found.determined[:, b]
        log_ratio = {end: np.where(both, getattr(ratios, end)[:, a, b], np.nan) for end in ("value", "low", "high")}
        pairs[pair_name(tasks[a], tasks[b])] = {
            "sign": np.sign(found.products.value[:, a, b]),
            "p": found.products.p[:, a, b],
            "sure": sure[:, position],
            "cosine": found.cosines.value[:, a, b],
            "low": found.cosines.low[:, a, b],
            "high": found.cosines.high[:, a, b],
            "log_ratio": log_ratio,
        }
    return {
        "blocks": list(names),
        "pairs": pairs,
        "lengths": {task: lengths[:, i] for i, task in enumerate(tasks)},
        "noise_rows": {task: noise[:, i] for i, task in enumerate(tasks)},
    }


def _judged(found: Direction) -> np.ndarray:
    """Probabilities of the products; NaN in blocks without any gradient, which are no tests."""
    there = found.squares.value != 0
    return np.where(there[:, :, None] & there[:, None, :], found.products.p, np.nan)


def pairs_of(tasks: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs, in the order of the files."""
    return list(itertools.combinations(tasks, 2))
