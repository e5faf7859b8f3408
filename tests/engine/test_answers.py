"""What rules may return, and the message for what they may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ortholora.engine import OrthoLora
from ortholora.errors import RuleError

from . import _models as models
from ._asserts import assert_gradients, gradients, run_step

IDS = torch.tensor([0, 1, 1, 0])


def ones(gram: Tensor) -> Tensor:
    return torch.ones(gram.shape[:2])


TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda gram: ones(gram).double(),
    "integers": lambda gram: ones(gram).long(),
    "booleans": lambda gram: ones(gram).bool(),
    "half precision": lambda gram: ones(gram).bfloat16(),
    "float64 combinations": lambda gram: torch.eye(2).double().expand(len(gram), 2, 2),
    "a gradient of its own": lambda gram: ones(gram).requires_grad_(),
}

REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "None": (lambda gram: None, "None"),
    "a list": (lambda gram: ones(gram).tolist(), "a list"),
    "a number": (lambda gram: 1.0, "a float"),
    "an array": (lambda gram: ones(gram).numpy(), "a ndarray"),
    "a pair": (lambda gram: (ones(gram), None), "a tuple"),
    "complex": (lambda gram: ones(gram).to(torch.complex64), r"complex64 of shape \[2, 2\]"),
    "another shape": (lambda gram: ones(gram)[0], r"float32 of shape \[2\]"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_any_real_numbers_are_weights(kind: str) -> None:
    sample = models.stack(4, 3, [5, 6])
    other = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"], rule=lambda gram, _: TAKEN[kind](gram))
    run_step(ortho, sample.model, [(sample, IDS)])
    expected = gradients(sample.model)
    stats = ortho.resolve()
    assert stats.weights.dtype == torch.float32
    assert_gradients(sample.model, expected)
    plain = OrthoLora(other, ["a", "b"], rule="sum")
    run_step(plain, other, [(sample, IDS)])
    plain.resolve()
    assert_gradients(other, gradients(sample.model))


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_named(kind: str) -> None:
    answer, found = REFUSED[kind]
    sample = models.stack(4, 3, [5, 6])
    ortho = OrthoLora(sample.model, ["a", "b"], rule=lambda gram, _: answer(gram))
    run_step(ortho, sample.model, [(sample, IDS)])
    with pytest.raises(RuleError, match=rf"weights \[2, 2\] or combinations \[2, 2, 2\](?s:.*){found}"):
        ortho.resolve()
