"""`torchjd:NAME`: TorchJD's own answer for every block, and what the user is told where there is none."""

from __future__ import annotations

import sys

import pytest
import torch
from torchjd import aggregation

from ortholora.engine import OrthoLora, RuleContext
from ortholora.engine.gram import unit_trace
from ortholora.engine.rules import get_rule
from ortholora.engine.rules.torchjd import REFUSED, WEIGHTINGS, TorchJD
from ortholora.errors import RuleError, UserError

from . import _models as models
from ._asserts import run_step


def context(tasks: int, seed: int = 0) -> RuleContext:
    present = torch.ones(tasks, dtype=torch.bool)
    return RuleContext(tuple(map(str, range(tasks))), present, 0, torch.Generator().manual_seed(seed))


def grams(blocks: int, tasks: int, seed: int = 0) -> torch.Tensor:
    stack = torch.randn(blocks, tasks, 16, generator=torch.Generator().manual_seed(seed))
    return unit_trace(stack @ stack.mT)


def test_every_weighting_of_torchjd_is_offered_or_refused_with_a_reason() -> None:
    names = {n.removesuffix("Weighting") for n in aggregation.__all__ if n.endswith("Weighting")} - {""}
    abstract = {"Aggregator", "GramianWeightedAggregator", "WeightedAggregator", "Weighting"}
    known = {name.removesuffix("Weighting") for name in aggregation.__all__ if name not in abstract}
    assert set(WEIGHTINGS) <= names
    assert known == set(WEIGHTINGS) | set(REFUSED)


@pytest.mark.parametrize("name", ["AlignedMTL", "FairGrad", "IMTLG", "Krum", "MGDA", "Mean", "Sum"])
def test_every_block_gets_torchjds_own_answer(name: str) -> None:
    gram = grams(4, 5)
    own = getattr(aggregation, f"{name}Weighting")(**WEIGHTINGS[name])
    expected = torch.stack([own(block) for block in gram])
    torch.testing.assert_close(TorchJD(name)(gram, context(5)), expected)


def test_arguments_reach_the_weighting() -> None:
    gram = grams(2, 3)
    own = aggregation.FairGradWeighting(alpha=2.0)
    torch.testing.assert_close(TorchJD("FairGrad", alpha=2.0)(gram, context(3)), torch.stack([own(g) for g in gram]))


def test_krum_of_three_tasks_is_the_mean() -> None:
    """The two nearest tie there, and the order in which tasks are named would decide."""
    assert torch.equal(TorchJD("Krum")(grams(2, 3), context(3)), torch.full((2, 3), 1 / 3))


def test_what_gradvac_remembers_stays_with_its_block() -> None:
    """Blocks in turn give what one weighting a block gives; a task that pauses finds its memory again."""
    steps = [grams(3, 2, seed) for seed in range(4)]
    rule = TorchJD("GradVac")
    own = [aggregation.GradVacWeighting() for _ in range(3)]
    for gram in steps:
        with_absent = torch.zeros(3, 3, 3)
        with_absent[:, ::2, ::2] = gram
        expected = torch.stack([weighting(block) for weighting, block in zip(own, gram, strict=True)])
        torch.testing.assert_close(rule(with_absent, context(3))[:, ::2], expected)


def test_a_step_that_overflowed_is_left_to_the_scaler() -> None:
    gram = grams(3, 3)
    gram[1, 0, 2] = float("nan")
    for name in ("AlignedMTL", "GradVac", "MGDA"):
        weights = TorchJD(name)(gram, context(3))
        assert bool(weights.isfinite().all())
        assert torch.equal(weights[1], torch.ones(3))


def test_a_model_trains_with_one_and_its_state_is_its_own() -> None:
    sample = models.bert(6, 3)
    ids = torch.tensor([0, 1, 2, 0, 1, 1])
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule="torchjd:GradVac")
    run_step(ortho, sample.model, [(sample, ids)])
    stats = ortho.resolve()
    assert bool(stats.weights.isfinite().all())
    state = ortho.state_dict()
    ortho.detach()
    with pytest.raises(ValueError, match=r"for torchjd:MGDA\. Found torchjd:GradVac"):
        OrthoLora(sample.model, ["a", "b", "c"], rule="torchjd:MGDA").load_state_dict(state)


def test_a_solver_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no convergence")

    monkeypatch.setattr(aggregation.MGDAWeighting, "forward", fail)
    with pytest.raises(RuleError, match=r"torchjd:MGDA could not weigh block 0\n(.*\n)*.*RuntimeError: no convergence"):
        TorchJD("MGDA")(grams(2, 3), context(3))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_takes_no_gram_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"torchjd:{name}.*\n.*`AlignedMTL`.*`UPGrad`\n.*{name}.*: .{{20}}"):
        get_rule(f"torchjd:{name}")


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match=r"knows no such weighting\n.*did you mean `UPGrad`\?"):
        get_rule("torchjd:upgrad")


def test_torchjd_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match=r"TorchJD 0.18 or newer(.*\n)*.*pip install torchjd"):
        get_rule("torchjd:MGDA")


def test_what_a_weighting_needs_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cvxpy(.*\n)*.*torchjd\[full\]"):
        get_rule("torchjd:CAGrad")
