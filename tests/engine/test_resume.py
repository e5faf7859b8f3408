"""Law 5: a resumed run is the uninterrupted one; and what a rule with memory sees."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import Ortho, OrthoLora, RuleContext
from ortholora.engine.rules import AdaTask

from . import _models as models
from ._asserts import assert_close, assert_gradients, gradients, oracle, run_step, weights
from ._rules import Means, SlowlyRandom


class OrthoWithMeans(Ortho):
    """Projects the current gradients off the running means as well."""

    memory = 0.9

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        return super().__call__(gram, context)[:, : len(context.tasks)]


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def parts_of(sample: models.Sample, step: int) -> list[tuple[models.Sample, Any]]:
    ids = torch.randint(4, sample.shape[:1], generator=torch.Generator().manual_seed(step))
    return [(sample, ids)]


def train(sample: models.Sample, ortho: OrthoLora, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        run_step(ortho, sample.model, parts_of(sample, step))
        ortho.resolve()
        optimizer.step()
        optimizer.zero_grad()


def optimizer_of(sample: models.Sample) -> torch.optim.Optimizer:
    return torch.optim.AdamW(models.lora_parameters(sample.model).values(), lr=1e-2)


@pytest.mark.parametrize("rule", [Ortho, SlowlyRandom, Means, OrthoWithMeans, AdaTask])
@pytest.mark.parametrize("block", ["matrix", "all"])
def test_a_resumed_run_is_the_uninterrupted_one(rule: Callable[[], Any], block: Any) -> None:
    sample = models.bert(8, 3)
    resumed = models.Sample(sample.fork(), sample.inputs, sample.target)
    ortho, optimizer = OrthoLora(sample.model, list("abcd"), rule=rule(), block=block), optimizer_of(sample)
    train(sample, ortho, optimizer, range(3))
    state = ortho.state_dict()
    checkpoint = saved({"ortho": state, "model": sample.model.state_dict(), "optimizer": optimizer.state_dict()})
    in_memory = weights(sample.model)
    train(sample, ortho, optimizer, range(3, 6))
    assert any(not torch.equal(in_memory[n], w) for n, w in weights(sample.model).items())

    # Another seed: everything that matters must come from the checkpoint.
    again, optimizer = OrthoLora(resumed.model, list("abcd"), rule=rule(), block=block, seed=99), optimizer_of(resumed)
    train(resumed, again, optimizer, range(10, 12))
    resumed.model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    again.load_state_dict(checkpoint["ortho"])
    train(resumed, again, optimizer, range(3, 6))
    found, expected = weights(resumed.model), weights(sample.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_seed_fixes_the_run_and_another_seed_changes_it() -> None:
    sample = models.bert(8, 3)
    runs = []
    for seed in (1, 1, 2):
        copy = models.Sample(sample.fork(), sample.inputs, sample.target)
        train(copy, OrthoLora(copy.model, list("abcd"), seed=seed), optimizer_of(copy), range(3))
        runs.append(weights(copy.model))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])
    assert any(not torch.equal(runs[0][n], runs[2][n]) for n in runs[0])


def test_a_state_taken_before_the_first_step_is_the_start() -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"], rule=Means())
    fresh = ortho.state_dict()
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 1, 1]))])
    first = ortho.resolve()
    ortho.load_state_dict(saved(fresh))
    sample.model.zero_grad()
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 1, 1]))])
    assert torch.equal(ortho.resolve().gram, first.gram)
    assert torch.equal(ortho.rule.grams[0], ortho.rule.grams[1])


def test_a_state_in_memory_does_not_move_with_the_run() -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"], rule=Means())
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 1, 1]))])
    ortho.resolve()
    state = ortho.state_dict()
    before = [t.clone() for t in state["means"]["sums"]], state["means"]["seen"].clone()
    sample.model.zero_grad()
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 1, 1]))])
    ortho.resolve()
    assert all(torch.equal(a, b) for a, b in zip(before[0], state["means"]["sums"], strict=True))
    assert torch.equal(before[1], state["means"]["seen"])


def test_a_state_of_other_tasks_is_refused() -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"])
    state = ortho.state_dict()
    ortho.detach()
    with pytest.raises(ValueError, match=r"for tasks \['b', 'a'\].*Found \['a', 'b'\]"):
        OrthoLora(sample.model, ["b", "a"]).load_state_dict(state)


@pytest.mark.parametrize("other", [{"rule": "sum"}, {"block": "all"}])
def test_a_state_of_another_rule_or_block_is_refused(other: dict[str, Any]) -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"])
    state = ortho.state_dict()
    ortho.detach()
    with pytest.raises(ValueError, match=f"should be for {next(iter(other))}"):
        OrthoLora(sample.model, ["a", "b"], **other).load_state_dict(state)


def naive_means(history: list[dict[str, Tensor]], present: list[list[bool]], decay: float) -> dict[str, Tensor]:
    """Exponential means, corrected for their start at zero; a task's mean moves only when it is there."""
    result = {}
    for name in history[0]:
        rows = []
        for task in range(len(present[0])):
            seen = [h[name][task].double() for h, p in zip(history, present, strict=True) if p[task]]
            amounts = [(1 - decay) * decay ** (len(seen) - 1 - k) for k in range(len(seen))]
            total = sum(a * g for a, g in zip(amounts, seen, strict=True))
            rows.append(total / sum(amounts) if seen else torch.zeros_like(history[0][name][task]).double())
        result[name] = torch.stack(rows).float()
    return result


def test_memory_is_a_corrected_running_mean() -> None:
    sample = models.bert(6, 3)
    reference_model = sample.fork()
    rule = Means(0.75)
    ortho = OrthoLora(sample.model, ["a", "b", "c"], rule=rule)
    history: list[dict[str, Tensor]] = []
    present: list[list[bool]] = []
    for ids in ([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0, 0, 0, 2, 2, 2], [1, 1, 0, 0, 2, 2]):
        parts = [(sample, torch.tensor(ids))]
        history.append(oracle(reference_model, parts, 3))
        present.append([t in ids for t in range(3)])
        run_step(ortho, sample.model, parts)
        stats = ortho.resolve()
        means = naive_means(history, present, 0.75)
        assert_gradients(sample.model, {name: m.sum(0) for name, m in means.items()})
        for block, name in enumerate(stats.blocks):
            both = torch.cat([history[-1][name], means[name]]).flatten(1)
            gram = both @ both.T
            assert_close(rule.grams[-1][block], gram / gram.trace(), what=name)
        assert stats.gram.shape[1:] == (3, 3)
        sample.model.zero_grad()
        with torch.no_grad():  # move, so that the gradients of the steps differ
            for model in (sample.model, reference_model):
                for k, parameter in enumerate(models.lora_parameters(model).values()):
                    parameter.add_(0.05 * (k % 3 - 1))


def test_a_step_that_overflowed_does_not_stay_in_the_means() -> None:
    sample = models.stack(4, 2, [3, 4])
    rule = Means(0.5)
    ortho = OrthoLora(sample.model, ["a", "b"], rule=rule)
    ids = torch.tensor([0, 0, 1, 1])
    run_step(ortho, sample.model, [(sample, ids)])
    ortho.resolve()
    expected = gradients(sample.model)
    for factor in (float("inf"), 1.0):
        sample.model.zero_grad()
        with ortho.batch(ids):
            (models.token_losses(sample.model, sample).mean() * factor).backward()
        ortho.resolve()
    assert_gradients(sample.model, expected)


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay in \(0, 1\)"):
        OrthoLora(models.stack(2, 2, [3, 4]).model, ["a"], rule=Means(decay))
