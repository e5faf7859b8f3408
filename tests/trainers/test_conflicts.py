"""The conflict figures of a run against literal computations."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor

from ortholora.engine import StepStats
from ortholora.trainers.conflicts import ConflictTracker, relation, sure_from


def stats(gradients: Tensor, present: list[bool] | None = None) -> StepStats:
    """Stats of plain joint training for task gradients `[N, T, numel]`."""
    gram = gradients @ gradients.transpose(1, 2)
    weights = torch.ones(gram.shape[:2])
    seen = torch.tensor(present or [True] * gram.shape[1])
    return StepStats(("a", "b", "c"), tuple("xyzw"[: len(gram)]), gram, weights, None, seen)


def literal_error(values: list[float]) -> float:
    """The standard error of the mean of a first-order autoregression."""
    mean = sum(values) / len(values)
    apart = [value - mean for value in values]
    squares = sum(a * a for a in apart)
    rho = max(0.0, sum(a * b for a, b in pairwise(apart)) / squares)
    return math.sqrt(squares / (len(values) - 1) / len(values) * (1 + rho) / (1 - rho))


def test_means_and_errors_over_steps() -> None:
    steps = [torch.randn(4, 3, 6) for _ in range(5)]
    tracker = ConflictTracker(["a", "b", "c"])
    for gradients in steps:
        tracker.add(stats(gradients))
    report = tracker.report()
    assert report is not None
    flat = [g.transpose(0, 1).flatten(1) for g in steps]
    cosines = torch.stack([torch.cosine_similarity(f[0], f[2], dim=0) for f in flat]).double()
    figures = report["pairs"]["a~c"]
    assert abs(figures["cosine"] - float(cosines.mean())) < 1e-6
    assert abs(figures["standard_error"] - literal_error(cosines.tolist())) < 1e-6
    lengths = torch.stack([f.norm(dim=1) for f in flat]).double().log().mean(0)
    assert [report["sizes"][task] for task in "abc"] == pytest.approx(
        (lengths - lengths.mean()).exp().tolist(), rel=1e-5
    )
    negative = torch.stack([((g[:, 0] * g[:, 2]).sum(1) < 0).double().mean() for g in steps]).mean()
    assert abs(figures["negative_share"] - float(negative)) < 1e-6
    assert report["steps"] == 5


def test_a_steady_conflict_is_sure_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    tracker = ConflictTracker(["a", "b", "c"])
    common = torch.randn(4, 50, generator=generator)
    for _ in range(60):
        noise = torch.randn(4, 3, 50, generator=generator)
        noise[:, 0] += 0.5 * common
        noise[:, 1] -= 0.5 * common
        tracker.add(stats(noise))
    pairs = tracker.report()["pairs"]  # type: ignore[index]
    assert pairs["a~b"]["verdict"] == "conflict"
    assert pairs["a~b"]["cosine"] < -5 * pairs["a~b"]["standard_error"]
    assert abs(pairs["b~c"]["cosine"]) < 4 * pairs["b~c"]["standard_error"]


def test_absent_tasks_do_not_count() -> None:
    tracker = ConflictTracker(["a", "b", "c"])
    tracker.add(stats(torch.randn(2, 3, 4), [True, True, False]))
    assert list(tracker.report()["pairs"]) == ["a~b"]  # type: ignore[index]


def test_recent_figures_start_over_and_state_round_trips() -> None:
    tracker = ConflictTracker(["a", "b", "c"])
    tracker.add(stats(torch.randn(2, 3, 4)))
    assert {"conflict/a-b", "size/c"} <= tracker.take_recent().keys()
    assert tracker.take_recent() == {}
    tracker.add(stats(torch.randn(2, 3, 4)))
    other = ConflictTracker(["a", "b", "c"])
    other.load_state_dict(tracker.state_dict())
    assert other.report() == tracker.report()
    assert other.take_recent() == tracker.take_recent()


def test_nothing_recorded() -> None:
    assert ConflictTracker(["a"]).report() is None


def test_the_history_is_that_of_every_block() -> None:
    steps = [torch.randn(2, 3, 4) for _ in range(3)]
    steps[0][1] = 0  # every B has no effect yet, so every A has no gradient
    tracker = ConflictTracker(["a", "b", "c"])
    for gradients in steps:
        tracker.add(stats(gradients, [True, gradients is not steps[2], True]))
    history = tracker.history()
    assert history is not None
    assert (history.blocks, history.pairs) == (("x", "y"), [("a", "b"), ("a", "c"), ("b", "c")])
    assert history.steps.tolist() == [1, 1, 1]
    assert history.cosine_steps[:, :, 0].tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 0]]
    for w, gradients in enumerate(steps):
        flat = [gradients[0], gradients[1], gradients.transpose(0, 1).flatten(1)]
        for n, g in enumerate(flat):
            for p, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
                if history.cosine_steps[w, n, p]:
                    assert abs(history.cosines[w, n, p] - float(torch.cosine_similarity(g[i], g[j], dim=0))) < 1e-6
            seen = history.length_steps[w, n] > 0
            np.testing.assert_allclose(np.exp(history.lengths[w, n])[seen], g.norm(dim=1).numpy()[seen], rtol=1e-5)
    assert np.isnan(history.cosines[history.cosine_steps == 0]).all()


def test_a_step_that_overflowed_spoils_nothing() -> None:
    tracker = ConflictTracker(["a", "b", "c"])
    tracker.add(stats(torch.randn(2, 3, 4)))
    before = tracker.report()
    tracker.add(stats(torch.full((2, 3, 4), torch.inf)))
    after = tracker.report()
    assert before is not None
    assert after is not None
    assert after["pairs"]["a~b"]["cosine"] == before["pairs"]["a~b"]["cosine"]
    assert after["removed"] == before["removed"]
    assert all(map(math.isfinite, tracker.take_recent().values()))


def test_a_state_of_an_earlier_version_starts_anew() -> None:
    tracker = ConflictTracker(["a", "b"])
    with pytest.warns(UserWarning, match="start anew"):
        tracker.load_state_dict({"sums": {}, "recent": {}})
    assert tracker.report() is None


@pytest.mark.parametrize("windows", [2, 5, 11, 12, 20, 32])
def test_of_few_windows_a_mean_must_be_further_from_zero(windows: int) -> None:
    exact = float(student.ppf(0.975, windows - 1))
    assert exact <= sure_from(windows) + 5e-3
    assert sure_from(windows) < exact * 1.01
    assert relation(-1.0, 0.999 / sure_from(windows), windows) == "conflict"
    assert relation(-1.0, 1.001 / sure_from(windows), windows) == "unsure"
