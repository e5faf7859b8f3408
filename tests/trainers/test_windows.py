"""Windows of steps: nothing is lost when they merge, and errors heed that steps go together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ortholora.trainers import windows as module
from ortholora.trainers.pace import Pace
from ortholora.trainers.windows import FEWEST, MOST, Windows, mean_and_error


def filled(values: torch.Tensor, seen: torch.Tensor | None = None) -> Windows:
    made = Windows()
    for index, value in enumerate(values):
        made.add(value, torch.ones_like(value, dtype=torch.bool) if seen is None else seen[index])
    return made


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 64, 65, 1000])
def test_windows_are_means_of_consecutive_steps(steps: int) -> None:
    values = torch.randn(steps, 3)
    made = filled(values)
    means, counts = made.means()
    width = made.width
    assert made.lengths.sum() == steps
    assert len(means) <= MOST
    assert len(means) == -(-steps // width)
    assert width == 1 or len(means) > MOST // 2
    for mean, count, part in zip(means, counts, values.split(width), strict=True):
        np.testing.assert_allclose(mean, part.double().mean(0), atol=1e-5)
        assert (count == len(part)).all()


def test_what_was_not_seen_does_not_count() -> None:
    values, seen = torch.randn(100, 2), torch.rand(100, 2) < 0.7
    seen[:, 1] = False
    mean, error = mean_and_error(*filled(values, seen).means())
    assert abs(mean[0] - float(values[:, 0][seen[:, 0]].double().mean())) < 1e-5
    assert error[0] > 0
    assert np.isnan(mean[1])
    assert np.isnan(error[1])


def test_one_window_has_no_error() -> None:
    mean, error = mean_and_error(*filled(torch.ones(1, 1)).means())
    assert mean[0] == 1
    assert np.isnan(error[0])


@pytest.mark.parametrize(("steps", "together"), [(30, 0.0), (200, 0.0), (200, 0.8), (1000, 0.9)])
def test_the_error_is_that_of_the_mean(steps: int, together: float) -> None:
    """Of first-order autoregressions: their means spread as much as the error says, however strongly steps depend."""
    generator = torch.Generator().manual_seed(0)
    series = torch.zeros(steps, 400)
    series[0] = torch.randn(400, generator=generator)
    for step in range(1, steps):
        noise = torch.randn(400, generator=generator) * (1 - together**2) ** 0.5
        series[step] = together * series[step - 1] + noise
    mean, error = mean_and_error(*filled(series).means())
    spread = mean.std()
    assert 0.85 < np.sqrt((error**2).mean()) / spread < 1.35
    naive = float(series.std(0).mean()) / steps**0.5
    assert (naive / spread < 0.5) == (together > 0)
    sure = np.abs(mean) > 2.1 * error
    assert sure.mean() < 0.12


def test_many_figures_have_fewer_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS", 120)
    assert len(filled(torch.randn(50, 6)).means()[0]) <= 10
    assert len(filled(torch.randn(50, 100)).means()[0]) <= FEWEST


def test_a_state_goes_on_where_it_was_taken() -> None:
    values = torch.randn(90, 2)
    whole, first, second = filled(values), filled(values[:40]), Windows()
    second.load_state_dict(first.state_dict())
    for value in values[40:]:
        second.add(value, torch.ones(2, dtype=torch.bool))
    np.testing.assert_array_equal(second.means()[0], whole.means()[0])
    assert (second.steps, second.width) == (whole.steps, whole.width)
    # What was saved is its own: going on changes no state that was taken before.
    assert float(first.means()[1].sum()) == 80


def test_pace_is_the_loss_against_its_beginning_and_the_others() -> None:
    pace = Pace()
    assert pace.of({"a": 2.0, "b": 1.0}) == {}
    assert pace.of({"a": 1.0, "b": 0.5, "c": 3.0}) == {"a": 1.0, "b": 1.0}
    found = pace.of({"a": 1.0, "b": 1.0, "c": 3.0})
    assert found == pytest.approx({"a": 0.5 / (2.5 / 3), "b": 1 / (2.5 / 3), "c": 1 / (2.5 / 3)})
    assert pace.of({}) == {}
    pace.of({"d": 0.0})
    assert "d" not in pace.first
