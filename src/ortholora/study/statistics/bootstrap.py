"""The bootstrap of a study: resamples of seeds and of evaluation rows, and intervals of ratios."""

from __future__ import annotations

import numpy as np

from ortholora.metrics.bootstrap import TAIL, draw_rows
from ortholora.metrics.bootstrap import interval as interval  # with `ratio_interval`, all that a study needs
from ortholora.metrics.compute import resampled
from ortholora.study.statistics.grid import Grid


def resample(grid: Grid, resamples: int, seed: int) -> np.ndarray:
    """Draw resamples and compute every method's metric on every task, averaged over the drawn seeds.

    A resample draws seeds with replacement, the same for all methods and tasks, and for each task its dev rows
    with replacement, the same for all methods and seeds: methods are compared on equal terms (paired).
    Each task has a random stream of its own, so one more method, or one more task at the end, changes no other
    interval.

    Args:
        grid: The runs.
        resamples: Number of resamples B.
        seed: Seed of the draws.

    Returns:
        `[B, methods, tasks]`, fractions.
    """
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(len(grid.tasks) + 1)]
    weights = seed_weights(streams[0], resamples, len(grid.seeds))
    out = np.empty((resamples, len(grid.methods), len(grid.tasks)))
    for index, task in enumerate(grid.tasks):
        targets = grid.targets(task)
        # Runs in the order method, seed.
        predictions = np.stack([grid.predictions(method, seed, task) for method in grid.methods for seed in grid.seeds])
        done = 0
        for counts in draw_rows(streams[index + 1], len(targets), resamples):
            size = counts.shape[1]
            values = resampled(grid.metric(task), targets, predictions, grid.num_labels(task), counts).reshape(
                len(grid.methods), len(grid.seeds), size
            )
            # A sum in a fixed order, not a product of matrices: equal methods stay equal to the last bit.
            total = np.zeros((len(grid.methods), size))
            for position in range(len(grid.seeds)):
                total += weights[done : done + size, position] * values[:, position]
            out[done : done + size, :, index] = total.T
            done += size
    return out


def seed_weights(generator: np.random.Generator, resamples: int, seeds: int) -> np.ndarray:
    """Draw the weight of each seed in each resample: `[resamples, seeds]`, each row sums to 1.

    Drawing S seeds with replacement gives the weight c / S, and a variance of the mean that is too small by
    (S - 1) / S: half of it with two seeds, which is what people run. So the deviation of the weights from 1 / S
    is stretched by sqrt(S / (S - 1)), which makes the variance unbiased (Rao and Wu 1988, "Resampling inference
    with complex survey data", the rescaling bootstrap). One seed has weight 1: only rows are resampled.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    drawn = generator.integers(0, seeds, size=(resamples, seeds))
    weights = (drawn[:, :, None] == np.arange(seeds)).mean(axis=1)
    return 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (weights - 1 / seeds)


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray) -> list[float]:
    """Return the 95 % interval of a ratio whose denominator is surely positive: `[low, high]`.

    In a resample where the denominator is not positive the ratio means nothing: near zero it explodes, and
    below zero its sign is wrong. Such a resample could speak for any value, so it counts as minus infinity
    for the low end and as plus infinity for the high end: the interval can only become wider by it. It stays
    finite, because the interval of the denominator lies above zero, so fewer resamples than a tail do this.

    Args:
        numerator: Resampled numerators, `[B]`.
        denominator: Resampled denominators, `[B]`, with `interval(denominator)[0] > 0`.
    """
    good = denominator > 0
    ratio = numerator / np.where(good, denominator, 1)
    low = np.percentile(np.where(good, ratio, -np.inf), TAIL, method="higher")
    high = np.percentile(np.where(good, ratio, np.inf), 100 - TAIL, method="lower")
    return [float(low), float(high)]
