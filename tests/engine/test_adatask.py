"""`adatask` against a literal loop over separate `autograd.grad` calls, and the stage that it stands on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora, RuleContext
from ortholora.engine.precondition import preconditioner_of
from ortholora.engine.rules import AdaTask, get_rule
from ortholora.errors import RuleError

from . import _models as models
from ._asserts import assert_gradients, assert_same, gradients, oracle, run_step
from .test_rule_contract import apart, directions_apart
from .test_rule_contract import gradients as drawn

TASKS = ["a", "b", "c"]
#: Task c comes late, b is absent in one step, and two steps have one task alone.
IDS = [[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1], [0, 0, 0, 2, 2, 2], [1, 1, 0, 0, 2, 2], [1] * 6, [2, 2, 1, 1, 0, 0]]


def transcribed(history: list[Tensor], present: list[list[bool]], beta: float, eps: float) -> Tensor:
    """One matrix's update of the last step: task gradients `[T, numel]` of every step, in plain loops."""
    running: dict[int, Tensor] = {}
    for task in range(len(present[0])):
        square, count = torch.zeros_like(history[0][task]).double(), 0
        for step, there in zip(history, present, strict=True):
            if there[task]:
                square, count = beta * square + (1 - beta) * step[task].double() ** 2, count + 1
        if present[-1][task] and float(square.sum()) > 0:
            running[task] = (square / (1 - beta**count)).sqrt()
    if not running:
        return torch.zeros_like(history[0][0]).double()
    whole = {task: float(rms.square().mean().sqrt()) for task, rms in running.items()}
    divisors = {task: rms + eps * whole[task] for task, rms in running.items()}
    shape = sum(divisors[task] / whole[task] for task in running) / len(running)
    length = sum(whole.values()) / len(whole)
    return sum(length * shape * history[-1][task].double() / divisors[task] for task in running)  # type: ignore[return-value]


def move(*of: torch.nn.Module) -> None:
    """Change the weights, so that the gradients of the steps differ."""
    with torch.no_grad():
        for model in of:
            for k, parameter in enumerate(models.lora_parameters(model).values()):
                parameter.add_(0.05 * (k % 3 - 1))


@pytest.mark.parametrize("block", ["matrix", "layer", "all"])
@pytest.mark.parametrize(("beta", "eps"), [(0.99, 1e-8), (0.5, 1e-2)])
def test_equals_a_loop_over_separate_gradients(block: Any, beta: float, eps: float) -> None:
    sample = models.bert(6, 3)
    reference = sample.fork()
    ortho = OrthoLora(sample.model, TASKS, rule=AdaTask(beta, eps), block=block)
    history: list[dict[str, Tensor]] = []
    for step, ids in enumerate(IDS):
        parts = [(sample, torch.tensor(ids))]
        history.append(oracle(reference, parts, 3))
        present = [[t in of for t in range(3)] for of in IDS[: step + 1]]
        run_step(ortho, sample.model, parts)
        assert_same(ortho.task_gradients(), history[-1])  # the raw ones
        ortho.resolve()
        expected = {}
        for name, gradient in history[-1].items():
            of_matrix = [h[name].flatten(1) for h in history]
            expected[name] = transcribed(of_matrix, present, beta, eps).view(gradient.shape[1:]).float()
        assert_gradients(sample.model, expected, 1e-4)
        sample.model.zero_grad()
        move(sample.model, reference)


def moved(rule: AdaTask, scale: float = 1.0, tasks: int = 3) -> Tensor:
    """The update after four steps; the last task is absent in the second."""
    everybody = torch.ones(tasks, dtype=torch.bool)
    for step in range(4):
        stack, present = drawn(4, tasks, seed=step) * scale, everybody.clone()
        if step == 1 and tasks > 1:
            stack[:, -1], present[-1] = 0, False
        update = rule.precondition.transform(0, stack, present, step).double().sum(1)
    return update / scale


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e10])
@pytest.mark.parametrize("tasks", [1, 2, 3, 64])
def test_the_size_of_all_gradients_changes_nothing(scale: float, tasks: int) -> None:
    assert apart(moved(AdaTask(), scale, tasks), moved(AdaTask(), 1.0, tasks)) < 1e-5


def test_the_size_of_one_loss_changes_no_direction_later_on() -> None:
    plain, scaled = AdaTask(), AdaTask()
    present, factors = torch.ones(3, dtype=torch.bool), torch.tensor([1.0, 1000.0, 1e-4])[:, None]
    for step in range(5):
        stack = drawn(4, 3, seed=step)
        one = plain.precondition.transform(0, stack, present, step).double().sum(1)
        other = scaled.precondition.transform(0, stack * factors, present, step).double().sum(1)
        assert directions_apart(other, one) < 1e-5


def test_an_absent_task_keeps_its_state_and_gets_nothing() -> None:
    stage, stack = AdaTask().precondition, drawn(4, 3)
    stage.transform(0, stack, torch.ones(3, dtype=torch.bool), 0)
    before = stage.state_dict()
    stack = drawn(4, 3, seed=1)
    stack[:, 1] = 0
    result = stage.transform(0, stack, torch.tensor([True, False, True]), 1)
    after = stage.state_dict()
    assert torch.equal(after["squares"][0][:, 1], before["squares"][0][:, 1])
    assert after["seen"][0].tolist() == [2, 1, 2]
    assert not torch.equal(after["squares"][0][:, 0], before["squares"][0][:, 0])
    assert not result[:, 1].any()


def test_one_task_alone_gets_its_plain_gradient_whatever_was_before() -> None:
    stage = AdaTask().precondition
    stage.transform(0, drawn(4, 3), torch.ones(3, dtype=torch.bool), 0)
    stack = drawn(4, 3, seed=1)
    stack[:, :2] = 0
    assert torch.equal(stage.transform(0, stack, torch.tensor([False, False, True]), 1), stack)


def test_zero_gradients_are_legal() -> None:
    stage, present = AdaTask().precondition, torch.ones(3, dtype=torch.bool)
    stack = drawn(4, 3)
    stack[0] = 0
    stack[1, 0] = 0
    stack[2, :, :5] = 0  # elements that nobody has
    for step in range(2):
        result = stage.transform(0, stack, present, step)
        assert bool(result.isfinite().all())
        assert torch.equal(result == 0, stack == 0)
    result = stage.transform(0, drawn(4, 3, seed=2), present, 2)  # what was zero so far is so no more
    assert bool(result.isfinite().all())


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_step_that_overflowed_or_was_discarded_leaves_no_trace(factor: float) -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"], rule="adatask")
    ids = torch.tensor([0, 0, 1, 1])
    run_step(ortho, sample.model, [(sample, ids)])
    ortho.resolve()
    expected, state = gradients(sample.model), ortho.state_dict()["precondition"]
    sample.model.zero_grad()
    with ortho.batch(ids):
        (models.token_losses(sample.model, sample).mean() * factor).backward()
    ortho.resolve()
    sample.model.zero_grad()
    run_step(ortho, sample.model, [(sample, ids)])
    ortho.discard()
    after = ortho.state_dict()["precondition"]
    assert all(torch.equal(after["squares"][k], v) for k, v in state["squares"].items())
    assert all(torch.equal(after["seen"][k], v) for k, v in state["seen"].items())
    sample.model.zero_grad()
    run_step(ortho, sample.model, [(sample, ids)])
    ortho.resolve()
    assert_gradients(sample.model, expected)


def test_bfloat16_buffers_have_float32_state() -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        sample = models.bert(6, 3)
        ortho = OrthoLora(sample.model, TASKS, rule="adatask", buffer_dtype=dtype)
        for ids in IDS[:4]:
            sample.model.zero_grad()
            run_step(ortho, sample.model, [(sample, torch.tensor(ids))])
            ortho.resolve()
            move(sample.model)
        assert {v.dtype for v in ortho.state_dict()["precondition"]["squares"].values()} == {torch.float32}
        results.append(gradients(sample.model))
    assert_same(results[1], results[0], 3e-2)


class Doubling:
    """A user's own: the stage is not for `adatask` alone."""

    def __init__(self, narrow: int = 0) -> None:
        self.precondition, self.narrow, self.steps = self, narrow, [0]

    def __call__(self, gram: Tensor, context: RuleContext) -> Tensor:
        return gram.new_ones(gram.shape[:2])

    def transform(self, index: int, gradients: Tensor, present: Tensor, step: int) -> Tensor:
        self.steps.append(step)
        return 2 * gradients[..., self.narrow :]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])


def test_a_rule_of_ones_own_may_transform() -> None:
    sample = models.stack(4, 2, [3, 4])
    ids = torch.tensor([0, 0, 1, 1])
    expected = {name: 2 * g.sum(0) for name, g in oracle(sample.fork(), [(sample, ids)], 2).items()}
    rule = Doubling()
    ortho = OrthoLora(sample.model, ["a", "b"], rule=rule)
    run_step(ortho, sample.model, [(sample, ids)])
    ortho.resolve()
    assert_gradients(sample.model, expected)
    assert ortho.state_dict()["precondition"] == {"steps": rule.steps}


def test_a_transform_of_the_wrong_shape_is_refused() -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b"], rule=Doubling(narrow=1))
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 0, 1, 1]))])
    with pytest.raises(RuleError, match=r"something else than task gradients(?s:.*)shape \[\d+, 2, \d+\]"):
        ortho.resolve()


def test_what_a_precondition_must_have() -> None:
    both, bare = Doubling(), Doubling()
    both.memory = 0.9  # type: ignore[attr-defined]
    bare.precondition = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="`memory` or `precondition`"):
        OrthoLora(models.stack(2, 2, [3, 4]).model, ["a"], rule=both)
    with pytest.raises(ValueError, match="should have transform, state_dict, load_state_dict"):
        preconditioner_of(bare)


@pytest.mark.parametrize(("text", "match"), [("adatask(beta=1)", r"decay in \(0, 1\)"), ("adatask(eps=0)", "positive")])
def test_arguments_out_of_range_are_refused(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        get_rule(text)


def test_a_state_of_other_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"should be for beta=0.99.*Found one for beta=0.9"):
        AdaTask().precondition.load_state_dict(AdaTask(0.9).precondition.state_dict())
