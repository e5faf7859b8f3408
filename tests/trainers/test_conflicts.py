"""The conflict figures of a run against literal computations."""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.engine import StepStats
from ortholora.trainers.conflicts import ConflictTracker


def stats(gradients: Tensor, present: list[bool] | None = None) -> StepStats:
    """Stats of plain joint training for task gradients `[N, T, numel]`."""
    gram = gradients @ gradients.transpose(1, 2)
    weights = torch.ones(gram.shape[:2])
    seen = torch.tensor(present or [True] * gram.shape[1])
    return StepStats(("a", "b", "c"), tuple("xyzw"[: len(gram)]), gram, weights, None, seen)


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
    assert abs(figures["standard_error"] - float(cosines.std() / 5**0.5)) < 1e-6
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
    assert "conflict/a~b/cosine" in tracker.take_recent()
    assert tracker.take_recent() == {}
    tracker.add(stats(torch.randn(2, 3, 4)))
    other = ConflictTracker(["a", "b", "c"])
    other.load_state_dict(tracker.state_dict())
    assert other.report() == tracker.report()
    assert other.take_recent() == tracker.take_recent()


def test_nothing_recorded() -> None:
    assert ConflictTracker(["a"]).report() is None
