"""What figures become in words: each finding with its figure, its certainty and a method to compare."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import yaml

from ortholora.engine.rules import get_rule
from ortholora.study.diagnose.blocks import figures_of_point
from ortholora.study.diagnose.findings import DIRECTION, PLATEAU, SIZE
from ortholora.study.diagnose.pace import figures_of_pace
from ortholora.study.diagnose.tables import TABLES
from ortholora.study.diagnose.verdict import headline, verdict

TASKS = ["calm", "loud"]
GROUPS = 16


def point(cosine: float = 0.0, lengths: tuple[float, float] = (1.0, 1.0), noise: float = 0.3) -> dict[str, Any]:
    """A point of two layers with an A and a B each, in which the tasks have these gradients everywhere."""
    mean = np.zeros((2, 50))
    mean[0, 0] = lengths[0]
    mean[1, :2] = lengths[1] * cosine, lengths[1] * math.sqrt(1 - cosine**2)
    draw = np.random.default_rng(0).normal(size=(4, GROUPS, 2, 50))
    gradients = mean + noise / math.sqrt(50) * draw
    arrays = {
        "gram": np.einsum("nkap,nlbp->nkalb", gradients, gradients),
        "losses": np.ones((GROUPS, 2)),
        "names": np.array([f"base_model.model.{layer}.lora_{role}.default.weight" for layer in "xy" for role in "AB"]),
        "layers": np.array(["x", "x", "y", "y"]),
        "roles": np.array(["A", "B"] * 2),
    }
    return {"step": 9, **figures_of_point(arrays, TASKS, [1.0, 1.0], rows=4, quota=[8, 8])}


def paces(jointly: float, alone: float = 0.5, start: float = 1.0) -> dict[str, Any]:
    """`calm` ends at these losses; `loud` at .5 in both."""
    rows = np.random.default_rng(1).normal(scale=0.05, size=(GROUPS, 1))
    own = [{0: start + rows, 9: np.full((GROUPS, 1), end) + rows * 0.9} for end in (alone, 0.5)]
    both = {0: start + np.hstack([rows, rows]), 9: np.array([jointly, 0.5]) + rows * 0.8}
    return figures_of_pace(both, own, TASKS)


def test_proposed_groups_are_a_method_to_compare() -> None:
    grouping = {"groups": [["calm"], ["loud"]], "more": {"value": 0.01, "error": 0.001}}
    _, methods = verdict(found() | {"grouping": grouping})
    assert yaml.safe_load(methods[-1]) == {"name": "groups", "rule": "sum", "groups": [["calm"], ["loud"]]}
    _, methods = verdict(found() | {"grouping": grouping | {"groups": [TASKS], "adapters": 2}})
    assert methods == ["single", "joint"]


def transfers(change: float = 0.0, sure: bool = False) -> dict[str, Any]:
    entry = {"change": {"value": change, "error": 0.01, "low": 0, "high": 0}, "predicted": 0.0, "sure": sure}
    return {a: dict.fromkeys(TASKS, entry) for a in TASKS}


def found(
    of_point: dict[str, Any] | None = None, pace: dict[str, Any] | None = None, transfer: dict[str, Any] | None = None
) -> dict[str, Any]:
    settings = {"steps": 9, "quota": dict.fromkeys(TASKS, 8)}
    parts = {
        "points": [of_point or point()],
        "pace": pace or paces(0.5),
        "transfer": transfer or transfers(),
        "grouping": None,
    }
    return {"tasks": TASKS, "settings": settings, **parts}


def test_without_any_finding_nothing_speaks_against_joint_training():
    sentences, methods = verdict(found())
    assert len(sentences) == 1
    assert "9 steps show nothing that speaks against joint training" in sentences[0]
    assert "fine" not in sentences[0]  # of 50 steps, nobody knows that
    assert methods == ["single", "joint"]
    assert "That is no promise" in sentences[0]
    assert headline(found()).startswith("Nothing surely speaks against joint training so far.")


def test_a_task_that_learns_alone_only_is_on_a_plateau():
    sentences, methods = verdict(found(pace=paces(jointly=0.98)))
    assert "`calm` learns alone (loss 1.0" in sentences[0]
    assert "stands nearly still" in sentences[0]
    assert "surely less than a quarter" in sentences[0]
    assert methods == PLATEAU


def test_the_headline_names_what_the_sentences_say():
    everything = found(point(cosine=-0.5, lengths=(1.0, 4.0)), paces(jointly=0.98))
    assert headline(everything) == (
        "`calm` stands still in company; the gradient of `loud` is surely more than 2 times as long as that of "
        "`calm`; `calm` and `loud` surely pull against each other. Try `gradnorm(alpha=2)`, `plateau`, `balanced`, "
        "`balanced-ortho`, `ortho`: only a comparison can tell whether it helps."
    )
    assert headline(found(pace=paces(jointly=0.8))).startswith("`calm` lags in company. Try `gradnorm")
    assert headline(found(point(noise=200.0))).startswith("These rows say too little")
    assert "Its gradient is 0.25 times as long as that of `loud`." in verdict(everything)[0][0]


def test_a_task_that_lags():
    sentences, methods = verdict(found(pace=paces(jointly=0.8)))
    assert "`calm` lags in company: 4" in sentences[0]
    assert methods == PLATEAU


@pytest.mark.parametrize(
    ("jointly", "alone", "case"),
    [(0.5, 0.5, "level"), (0.3, 0.5, "ahead"), (0.98, 0.97, "unknown"), (0.7, 0.5, "behind"), (0.95, 0.5, "still")],
)
def test_cases_of_pace(jointly, alone, case):
    assert paces(jointly, alone)["calm"]["case"] == case


def test_a_lag_that_is_not_sure_is_none():
    """Half of its own pace, but the micro-batches differ by more."""
    apart = np.linspace(-1, 1, GROUPS)[:, None]
    own = [{0: np.ones((GROUPS, 1)), 9: np.full((GROUPS, 1), 0.5)}] * 2
    found = figures_of_pace({0: np.ones((GROUPS, 2)), 9: 0.75 + apart * [1.0, 0.1]}, own, TASKS)
    assert [found[task]["case"] for task in TASKS] == ["level", "behind"]
    assert found["calm"]["share"] == found["loud"]["share"] == pytest.approx(0.5)


def test_what_was_not_learned_alone_says_nothing():
    sentences, methods = verdict(found(pace=paces(jointly=0.98, alone=0.97)))
    assert "`calm` did not surely begin to learn (5 % of the loss)" in sentences[-1]
    assert methods == ["single", "joint"]


def test_unequal_lengths():
    sentences, methods = verdict(found(point(lengths=(1.0, 4.0))))
    assert sentences[0].startswith("The gradient of `loud` is 4.0 times as long as that of `calm` (")
    assert "or a weight of about 4.0 for `calm`" in sentences[0]
    assert methods == SIZE
    assert verdict(found(point(lengths=(1.0, 1.8))))[1] == ["single", "joint"]


def test_a_sure_conflict_has_its_figures_and_careful_words():
    sentences, methods = verdict(found(point(cosine=-0.5)))
    assert "`calm` and `loud` surely pull against each other (cosine -0." in sentences[0]
    assert "in 4 of 4 matrices" in sentences[0]
    assert "only a comparison can tell" in sentences[0]
    assert methods == DIRECTION


def test_a_noisy_step_is_said_to_be_one():
    sentences, _ = verdict(found(point(cosine=-0.5, noise=4.0)))
    assert "nine of ten would take about" in sentences[0]


def test_tasks_that_help_each_other_need_no_rule():
    sentences, methods = verdict(found(point(cosine=0.5), transfer=transfers(-0.1, sure=True)))
    assert "surely pull the same way" in sentences[0]
    assert "Measured: a step on `calm` alone surely lowers the loss of `loud`" in sentences[2]
    assert sentences[4] == "What one step does has not foretold what a whole training does, as far as that was tested."
    assert methods == ["single", "joint"]


def test_a_step_that_hurts_another_task_leads_to_groups():
    hurting = found(transfer=transfers(0.1, sure=True))
    assert "`--groups 2` proposes" in verdict(hurting)[0][-1]
    grouping = {"adapters": 2, "groups": [["calm"], ["loud"]], "more": {"value": 0.01, "error": 0.001}}
    assert not any("--groups" in line for line in verdict(hurting | {"grouping": grouping})[0])
    assert not any("--groups" in line for line in verdict(found(transfer=transfers(-0.1, sure=True)))[0])


def test_lengths_that_are_not_determined_give_no_cosine():
    unclear = point(noise=200.0)
    assert unclear["pairs"]["calm~loud"]["cosine"] is None
    assert not unclear["sizes"]["calm"]["determined"]
    sentences, _ = verdict(found(unclear))
    assert "Nothing is surely wrong" in sentences[0]
    assert "too little" in sentences[0]
    assert "how long the gradient of `calm`, `loud` is" in sentences[1]
    tables = [table(found(unclear)) for table in TABLES]
    assert any("not determined" in cell for table in tables if table for row in table.rows for cell in row)


def test_task_weights_are_part_of_the_size():
    """The gradient that a step adds up is that of the weighted loss."""
    arrays = {
        "gram": np.random.default_rng(2).normal(size=(1, 5, 2, 6)),
        "losses": np.ones((5, 2)),
        "names": np.array(["x.lora_A.default.weight"]),
        "layers": np.array(["x"]),
        "roles": np.array(["A"]),
    }
    gradients = arrays["gram"] + 3
    arrays["gram"] = np.einsum("nkap,nlbp->nkalb", gradients, gradients)
    plain, weighted = (figures_of_point(arrays, TASKS, [1.0, w], 4, [8, 8]) for w in (1.0, 3.0))
    sizes = [found["sizes"]["loud"] for found in (plain, weighted)]
    assert sizes[1]["length"] == pytest.approx(3 * sizes[0]["length"])
    assert sizes[1]["noise_rows"] == pytest.approx(sizes[0]["noise_rows"])
    pairs = [found["pairs"]["calm~loud"]["cosine"]["value"] for found in (plain, weighted)]
    assert pairs[0] == pytest.approx(pairs[1])


def test_groups_are_proposed_with_a_caution():
    more = {"value": 0.012, "error": 0.003, "low": 0.005, "high": 0.019}
    grouping = {"adapters": 2, "groups": [["calm"], ["loud"]], "more": more}
    sentences, _ = verdict(found() | {"grouping": grouping})
    assert "best for: `calm`; `loud`. A step is worth 1.2 ± 0.3 %" in sentences[-1]
    assert "flattered by being chosen" in sentences[-1]
    sentences, _ = verdict(found() | {"grouping": grouping | {"groups": [TASKS]}})
    assert "one for all tasks is worth most" in sentences[-1]


def test_every_method_that_is_advised_exists():
    for rule in [*PLATEAU, *SIZE, *DIRECTION]:
        get_rule(rule)
