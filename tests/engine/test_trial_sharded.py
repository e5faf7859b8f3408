"""The trial under FSDP2, where the module that is run twice lies inside of the one whose forward gathers weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from ortholora.engine import OrthoLora

from . import _models as models
from ._asserts import assert_same, oracle, run_step
from .test_abandoned_sharded import IDS, one_process

__all__ = ["one_process"]


class Around(nn.Module):
    """A model of several tasks around a PEFT model, whose embeddings it gathers itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(4, 1)

    def forward(self, **inputs: Tensor) -> Any:
        return self.inner(**inputs)


def test_a_model_inside_of_the_sharded_one_is_tried_out() -> None:
    sample = models.bert(4, 3)
    expected = oracle(sample.fork(), [(sample, IDS)], 2)
    model: Any = Around(sample.model)
    ortho = OrthoLora(model, ["a", "b"])
    for layer in sample.model.base_model.model.encoder.layer:  # type: ignore[union-attr]
        fully_shard(layer)
    fully_shard(model)
    for _ in range(2):
        run_step(ortho, model, [(sample, IDS)])
        found = {name.removeprefix("inner."): gradient.clone() for name, gradient in ortho.task_gradients().items()}
        ortho.resolve()
        model.zero_grad()
        assert_same(found, expected)
