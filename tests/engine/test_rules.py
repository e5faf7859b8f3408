"""The seam for rules: functions, objects, names; and what a wrong one is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import Ortho, OrthoLora, Rule, RuleContext, Sum
from ortholora.engine.rules import RULES, Balanced, BalancedOrtho, TorchJD, get_rule

from . import _models as models
from . import _rules
from ._asserts import assert_gradients, oracle, run_step

IDS = torch.tensor([0, 1, 2, 0, 1, 1])
FIRST = f"{_rules.__name__}:first_task_only"


class FirstTaskOnly:
    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        return _rules.first_task_only(gram, context)


def test_names() -> None:
    assert isinstance(get_rule("sum"), Sum)
    assert isinstance(get_rule("ortho"), Ortho)
    assert isinstance(get_rule("balanced"), Balanced)
    assert isinstance(get_rule("balanced-ortho"), BalancedOrtho)
    assert isinstance(get_rule("torchjd:MGDA"), TorchJD)
    assert all(isinstance(get_rule(name), Rule) for name in RULES)
    own = Ortho()
    assert get_rule(own) is own
    assert isinstance(get_rule(f"{_rules.__name__}:SlowlyRandom"), _rules.SlowlyRandom)


@pytest.mark.parametrize("rule", [_rules.first_task_only, FirstTaskOnly(), FIRST], ids=["function", "object", "path"])
@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
def test_a_rule_of_ones_own_decides(rule: Any, block: Any) -> None:
    sample = models.bert(6, 3)
    expected = oracle(sample.fork(), [(sample, IDS)], 3)
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=rule, block=block)
    run_step(ortho, sample.model, [(sample, IDS)])
    stats = ortho.resolve()
    assert stats.combination is None
    assert stats.removed_pairs is None
    assert_gradients(sample.model, {name: g[0] for name, g in expected.items()})


def test_weights_reach_their_own_block() -> None:
    """Every block gets another weight: a mix-up of blocks, groups or tasks would show."""
    sample = models.bert(6, 3)
    expected = oracle(sample.fork(), [(sample, IDS)], 3)

    def rule(gram: Tensor, context: RuleContext) -> Tensor:
        return torch.arange(1.0, 1.0 + gram[..., 0].numel()).view(gram.shape[:2])

    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=rule)
    run_step(ortho, sample.model, [(sample, IDS)])
    stats = ortho.resolve()
    assert list(stats.blocks) == list(expected)
    for k, (name, gradients) in enumerate(expected.items()):
        weights = torch.arange(1.0 + 3 * k, 4.0 + 3 * k)
        expected[name] = torch.einsum("t,t...->...", weights, gradients)
        assert torch.equal(stats.weights[k], weights)
    assert_gradients(sample.model, expected)


def test_a_combination_is_the_sum_of_its_rows() -> None:
    sample = models.bert(6, 3)
    expected = oracle(sample.fork(), [(sample, IDS)], 3)
    rows = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, -1.0], [0.25, 0.0, 1.0]])
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=lambda gram, context: rows.expand(len(gram), 3, 3))
    run_step(ortho, sample.model, [(sample, IDS)])
    ortho.resolve()
    total = torch.tensor([1.25, 2.5, 0.0])
    assert_gradients(sample.model, {n: torch.einsum("t,t...->...", total, g) for n, g in expected.items()})


def test_what_a_rule_is_told() -> None:
    seen: list[RuleContext] = []

    def rule(gram: Tensor, context: RuleContext) -> Tensor:
        seen.append(context)
        assert gram.dtype == torch.float32
        assert gram.shape == (4, 3, 3)
        torch.testing.assert_close(gram.diagonal(dim1=1, dim2=2).sum(1), torch.ones(4))
        assert not gram[:, 1].any()
        return torch.ones(4, 3)

    sample = models.stack(4, 2, [3, 4, 5])
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=rule)
    for _ in range(2):
        run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 2, 2]))])
        ortho.resolve()
        sample.model.zero_grad()
    assert [c.step for c in seen] == [0, 1]
    assert all(c.present.tolist() == [True, False, True] for c in seen)
    assert seen[0].tasks == ("a", "b", "c")
    assert seen[0].generator.device.type == "cpu"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "pcgrad2",
            r"Unknown rule 'pcgrad2'. Known rules: sum, ortho, balanced, balanced-ortho, gradnorm.*; or 'torchjd:NAME' "
            "for one of TorchJD's; or name your own as 'module:attribute'",
        ),
        ("torchjd:NashMTL", r"'torchjd:NashMTL' cannot be used"),
        ("no_such_module:rule", r"could not be imported.*PYTHONPATH"),
        (f"{_rules.__name__}:missing", "could not be imported"),
        (f"{_rules.__name__}:not_a_rule", "should be a callable"),
        (Ortho, "a name or a callable"),
        (3, "a name or a callable"),
    ],
)
def test_what_is_no_rule(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_rule(rule)


def test_an_answer_of_wrong_shape_leaves_grad_alone() -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"], rule=_rules.of_wrong_shape)
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 1, 1]))])
    before = [p.grad.clone() for p in models.lora_parameters(sample.model).values()]
    with pytest.raises(ValueError, match=r"weights \[2, 2\] or combinations \[2, 2, 2\]\n.*shape \[3, 2\]"):
        ortho.resolve()
    now = [p.grad for p in models.lora_parameters(sample.model).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_a_rule_with_parameters_of_its_own() -> None:
    """Its graph must not end up in `.grad`."""
    scale = torch.ones((), requires_grad=True)
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"], rule=lambda gram, context: scale * torch.ones(gram.shape[:2]))
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 1, 1]))])
    stats = ortho.resolve()
    assert not stats.weights.requires_grad
    assert not any(p.grad.requires_grad for p in models.lora_parameters(sample.model).values())


def test_a_rule_that_returns_nan_is_named() -> None:
    """Zero gradients are legal, so a rule that divides by a norm must guard it."""
    sample = models.stack(4, 2, [3, 4])

    def careless(gram: Tensor, context: RuleContext) -> Tensor:
        return 1 / gram.diagonal(dim1=1, dim2=2)

    ortho = OrthoLora(sample.model, ["a", "b", "absent"], rule=careless)
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 1, 0, 1]))])
    with pytest.raises(ValueError, match=r"careless.* returned NaN or infinite weights"):
        ortho.resolve()


class OfTwo:
    """A rule of one's own with an argument."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        return self.factor * torch.ones(gram.shape[:2])


def test_a_name_may_have_arguments() -> None:
    assert isinstance(get_rule("sum()"), Sum)
    own = get_rule(f"{__name__}:OfTwo(factor=0.5)")
    assert getattr(own, "factor", None) == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *(
            (f"gradnorm{wrong}", r"should look like 'gradnorm\(alpha=2\)'")
            for wrong in ("(alpha=2", "(2)", "(alpha=f())")
        ),
        *(
            (f"sum{wrong}", "should look like")
            for wrong in ("() + 1", "()()", "(**{'a': 1})", "(a=1, a=2)", "(a={[]: 1})")
        ),
        ("sum(alpha=2)", r"The rule 'sum' should get arguments that it takes\. Found \(alpha=2\): "),
        ("pcgrad2(alpha=2)", "Unknown rule 'pcgrad2'"),
        ("otrho", "Did you mean 'ortho'?"),
        ("engine._rules:first_task_only(alpha=2)", "Only a class takes arguments"),
    ],
)
def test_arguments_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_rule(name)
