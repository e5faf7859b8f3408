"""One backward, nothing more kept, hardly anything more computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from ortholora.engine import OrthoLora, capture

from . import _models as models
from ._asserts import joint_step, run_step

IDS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
TASKS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "ids", [IDS, IDS.flip(0), torch.tensor([0, 1, 2, 3] * 2), 0], ids=["runs", "order", "any", "pure"]
)
def test_one_backward_for_every_product(monkeypatch: pytest.MonkeyPatch, ids: Any) -> None:
    calls: list[str] = []
    backward = capture._CaptureLinear.backward

    def counted(ctx: Any, delta: torch.Tensor) -> Any:
        calls.append(ctx.slot.matrix.name)
        return backward(ctx, delta)

    monkeypatch.setattr(capture._CaptureLinear, "backward", staticmethod(counted))
    sample = models.bert(8, 3)
    ortho = OrthoLora(sample.model, TASKS)
    run_step(ortho, sample.model, [(sample, ids)])
    ortho.resolve()
    assert sorted(calls) == sorted(models.lora_parameters(sample.model))


def saved_bytes(model: nn.Module, sample: models.Sample, autocast: bool) -> int:
    """Bytes that autograd keeps for the backward, each storage once, parameters aside."""
    kept: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, autocast):
        loss = models.token_losses(model, sample).mean()
    assert loss.requires_grad  # and the graph is alive while we count
    return sum(kept.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("build", [models.bert, models.llama, models.gpt2], ids=["bert", "llama", "gpt2"])
def test_nothing_more_is_kept_for_the_backward(build: Any, dropout: float, autocast: bool) -> None:
    sample = build(8, 4, lora_dropout=dropout)
    plain = saved_bytes(sample.fork(), sample, autocast)
    ortho = OrthoLora(sample.model, TASKS)
    with ortho.batch(IDS):
        ours = saved_bytes(sample.model, sample, autocast)
    assert 0 < ours <= plain


def test_buffers_are_allocated_once() -> None:
    sample = models.bert(8, 3)
    ortho = OrthoLora(sample.model, TASKS)
    places = []
    for _ in range(3):
        run_step(ortho, sample.model, [(sample, IDS)])
        places.append({n: t.data_ptr() for n, t in ortho.task_gradients().items()})
        ortho.resolve()
        sample.model.zero_grad()
    assert places[0] == places[1] == places[2]


def flops(model: nn.Module, parts: list[Any], ortho: OrthoLora | None) -> int:
    with FlopCounterMode(display=False) as counter:
        if ortho is None:
            joint_step(model, parts)
        else:
            run_step(ortho, model, parts)
            ortho.resolve()
    model.zero_grad()
    return counter.get_total_flops()


@pytest.mark.parametrize("ids", [IDS, torch.tensor([3, 1, 2, 0] * 2)], ids=["runs", "interleaved"])
def test_flops_of_a_step_are_those_of_joint_training(ids: torch.Tensor, record_property: Any) -> None:
    base = BertModel(
        BertConfig(vocab_size=19, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=384),
        add_pooling_layer=False,
    )
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["query", "key", "value", "dense"])).train()
    models.draw_lora(model)
    sample = models.Sample(model, {"input_ids": torch.randint(19, (8, 32))}, torch.randn(8, 32, 96))
    joint = flops(sample.fork(), [(sample, ids)], None)
    ratio = flops(model, [(sample, ids)], OrthoLora(model, TASKS)) / joint
    record_property("flop_ratio", ratio)
    print(f"FLOPs of an ortho step over a joint step: {ratio:.4f}")
    assert 1.0 <= ratio <= 1.02
