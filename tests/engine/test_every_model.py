"""Law 11 on the architectures of transformers: capture is the oracle, or a refusal that names the module."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from packaging import version

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._architectures import ARCHITECTURES, ONE_PASS, REFUSED, ROWS, TASK_PURE, Architecture
from ._asserts import assert_same
from ._reference import task_gradients

pytestmark = [
    pytest.mark.skipif(
        version.parse(transformers.__version__) < version.parse("5"),
        reason="docs/every-model.md is about transformers 5",
    ),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),  # of models that read tiny settings
]
PAGE = Path(__file__).parents[2] / "docs" / "every-model.md"
TASKS = ["a", "b", "c"]
#: Task c has two rows that are not side by side, so nothing is right by chance.
IDS = torch.tensor([2, 0, 1, 2])
#: Of architectures whose layers differ by tens of thousands in size of gradient: float32 through a softmax of logits.
TOLERANCE = 1e-4

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def captured(model: torch.nn.Module, architecture: Architecture, inputs: dict[str, torch.Tensor]) -> OrthoLora:
    """One mixed batch by a new OrthoLora."""
    ortho = OrthoLora(model, TASKS)
    torch.manual_seed(7)
    with ortho.batch(IDS):
        architecture.row_losses(model, inputs).sum().backward()
    return ortho


@every_architecture
def test_capture_is_the_oracle_or_a_refusal_by_name(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.sample()
    if architecture.answer != ONE_PASS:
        with pytest.raises(CaptureError, match=architecture.named) as refused:
            captured(model, architecture, inputs)
        assert "task-pure" in refused.value.todo + refused.value.expected
        return
    original = models.copy.deepcopy(model)
    found = captured(model, architecture, inputs).task_gradients()
    torch.manual_seed(7)
    rows = architecture.row_losses(original, inputs)
    parameters = models.lora_parameters(original)
    losses = [(rows * (task == IDS)).sum() for task in range(len(TASKS))]
    expected = dict(zip(parameters, task_gradients(losses, list(parameters.values())), strict=True))
    reached = {key: gradient for key, gradient in expected.items() if bool(gradient.any())}
    assert len(reached) > len(expected) / 2, "the test proves nothing"
    assert_same({key: found[key] for key in reached}, reached, TOLERANCE)


def rows_of_page() -> list[list[str]]:
    """The cells of the page's table."""
    text = PAGE.read_text(encoding="utf-8").split("<!-- models:begin -->")[1].split("<!-- models:end -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_says_what_the_tests_find() -> None:
    told = {row[0]: row[1] for row in rows_of_page()}
    assert told == {name: architecture.answer for name, architecture in ARCHITECTURES.items()}


def test_the_page_says_why() -> None:
    for name, answer, modules, why in rows_of_page():
        assert bool(why) == (answer != ONE_PASS), f"{name}: why"
        for module in re.findall(r"`([^`]+)`", modules):
            targets = " ".join((*ARCHITECTURES[name].targets, *ARCHITECTURES[name].parameters))
            assert re.search(rf"\b{re.escape(module)}\b", targets.replace("[qv]", "q_proj v")), f"{name}: {module}"


def test_the_page_leaves_no_answer_out() -> None:
    answers = [architecture.answer for architecture in ARCHITECTURES.values()]
    assert {ONE_PASS, TASK_PURE, REFUSED} == set(answers)
    assert len(IDS) == ROWS
