"""Scores of a task's rows: the same by one process and by several, and by a trainer and a saved run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import language_workspaces
import workspaces
from ortholora.models.adapted import Reading
from ortholora.models.build import build_model, make_card
from ortholora.trainers.scoring import score


def shared(ranks: int, **arguments: Any) -> Any:
    """What the last of several processes finds; what the others hand in is recorded first."""
    handed: list[list[np.ndarray]] = []
    for rank in range(ranks):
        mine: list[np.ndarray] = []

        def gather(values: np.ndarray, mine: list[np.ndarray] = mine) -> np.ndarray:
            mine.append(values)
            return values + sum(others[len(mine) - 1] for others in handed)

        found = score(**arguments, share=slice(rank, None, ranks), gather=gather)
        handed.append(mine)
    assert len({len(mine) for mine in handed}) == 1  # nobody would wait for ever
    return found


@pytest.mark.parametrize("make", [workspaces.workspace, language_workspaces.workspace], ids=["encoder", "language"])
def test_several_processes_find_what_one_finds(make: Any) -> None:
    space = make()
    model = build_model(space.config, make_card(space.config, space.tasks), 0).eval()
    reading = Reading(space.tokenizer, space.config.max_length, batch_size=5)
    for index, task in enumerate(space.tasks):
        rows = space.encoded(task.name).dev
        with torch.no_grad():
            alone = score(model, index, task.spec, rows, reading)
            together = shared(3, model=model, index=index, task=task.spec, rows=rows, reading=reading)
        assert alone.scores == pytest.approx(together.scores, abs=1e-6)
        np.testing.assert_allclose(alone.targets, together.targets)
        np.testing.assert_allclose(alone.predictions, together.predictions, atol=1e-5)


@pytest.mark.parametrize("task", range(4))
def test_written_answers_are_measured_where_the_metric_asks_for_them(task: int) -> None:
    space = language_workspaces.workspace()
    model = build_model(space.config, make_card(space.config, space.tasks), 0).eval()
    reading = Reading(space.tokenizer, space.config.max_length)
    spec, rows = space.tasks[task].spec, space.encoded(space.tasks[task].name).dev
    for metric in ("exact_match", "inverse_perplexity"):
        asked = spec.model_copy(update={"metric": metric})
        found = score(model, task, asked, rows, reading).scores
        assert ("exact_match" in found) == (metric == "exact_match")
        assert found["main"] == found[metric]
        assert found["inverse_perplexity"] == pytest.approx(np.exp(-found["loss"]))
        assert ("accuracy" in found) == (spec.labels is not None)
