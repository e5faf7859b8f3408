"""One backward, nothing more kept, hardly anything more computed."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from ortholora.engine import OrthoLora
from ortholora.engine.buffers import Slot

from . import _models as models
from ._asserts import joint_step, run_step

IDS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
TASKS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "ids", [IDS, IDS.flip(0), torch.tensor([0, 1, 2, 3] * 2), 0], ids=["runs", "order", "any", "pure"]
)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
def test_one_backward_for_every_product(monkeypatch: pytest.MonkeyPatch, ids: Any, fused: bool) -> None:
    calls: list[str] = []
    capture = Slot.capture

    def counted(slot: Slot, *args: Any) -> torch.Tensor:
        calls.append(slot.matrix.name)
        return capture(slot, *args)

    monkeypatch.setattr(Slot, "capture", counted)
    sample = models.bert(8, 3)
    ortho = OrthoLora(sample.model, TASKS, fused=fused)
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


def addmm_flops(out: Any, a: Any, b: Any, **_: Any) -> int:
    """The counter of torch knows `addmm` but not the in-place form."""
    return 2 * a[0] * a[1] * b[1]


def flops(model: nn.Module, parts: list[Any], ortho: OrthoLora | None) -> int:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}) as counter:
        if ortho is None:
            joint_step(model, parts)
        else:
            run_step(ortho, model, parts)
            ortho.resolve()
    model.zero_grad()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def minilm() -> tuple[models.Sample, int]:
    """MiniLM's width and 2,048 tokens (three of its six layers), and the FLOPs of a joint step."""
    config = BertConfig(
        vocab_size=19, hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536
    )
    base = BertModel(config, add_pooling_layer=False)
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["query", "key", "value", "dense"])).train()
    models.draw_lora(model)
    sample = models.Sample(model, {"input_ids": torch.randint(19, (32, 64))}, torch.randn(32, 64, 384))
    return sample, flops(sample.fork(), [(sample, 0)], None)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
@pytest.mark.parametrize("tasks", [2, 8, 32])
def test_flops_of_a_step_are_those_of_joint_training(
    tasks: int, fused: bool, minilm: tuple[models.Sample, int], record_property: Any
) -> None:
    sample, joint = minilm
    model = sample.fork()
    ortho = OrthoLora(model, [f"task{t}" for t in range(tasks)], fused=fused, try_out=False)
    ratio = flops(model, [(sample, models.equal_runs(tasks, 32 // tasks))], ortho) / joint
    record_property("flop_ratio", ratio)
    print(f"FLOPs of an ortho step over a joint step, T = {tasks}: {ratio:.4f}")
    assert 1.0 <= ratio <= 1.005


def test_a_model_is_tried_out_for_two_steps_more_and_once(minilm: tuple[models.Sample, int]) -> None:
    sample, joint = minilm
    model = sample.fork()
    ortho = OrthoLora(model, [f"task{t}" for t in range(4)])
    first, second = (flops(model, [(sample, models.equal_runs(4, 8))], ortho) / joint for _ in range(2))
    assert 2.9 <= first <= 3.05
    assert 1.0 <= second <= 1.005


def test_flops_do_not_depend_on_the_order_of_the_rows() -> None:
    sample = models.bert(8, 4)
    counts = set()
    for ids in (IDS, torch.tensor([3, 1, 2, 0] * 2), torch.tensor([3, 3, 0, 0, 0, 2, 1, 1])):
        counts.add(flops(sample.fork(), [(sample, 0)], None))
        model = sample.fork()
        counts.add(flops(model, [(sample, ids)], OrthoLora(model, TASKS)))
    assert len(counts) == 2


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_task_gradients_cost_what_the_formula_says(dtype: torch.dtype, size: int) -> None:
    """`size · T · (trainable LoRA elements)` bytes, and nothing else that stays between steps."""
    sample = models.bert(8, 3)
    ortho = OrthoLora(sample.model, TASKS, buffer_dtype=dtype)
    run_step(ortho, sample.model, [(sample, IDS)])
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in ortho.task_gradients().values()}
    elements = sum(p.numel() for p in models.lora_parameters(sample.model).values())
    assert sum(kept.values()) == size * len(TASKS) * elements


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of tensors that operations allocate; `peak` is the most alive at once.

    Args:
        old: Tensors from before, which do not count.
    """

    def __init__(self, old: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in old}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resolve_keeps_at_most_one_shape_beside_the_buffers(dtype: torch.dtype) -> None:
    sample = models.stack(8, 4, [256] * 9, r=8)
    ortho = OrthoLora(sample.model, TASKS, buffer_dtype=dtype)
    for _ in range(2):
        sample.model.zero_grad()
        run_step(ortho, sample.model, [(sample, IDS)])
        ortho.resolve()
    sample.model.zero_grad(set_to_none=False)
    run_step(ortho, sample.model, [(sample, IDS)])
    ortho._checks_left, ortho._step = 0, 1  # not a step in which the completeness check runs
    old = [t for p in sample.model.parameters() for t in (p, p.grad) if t is not None]
    with LiveBytes([*old, *ortho.task_gradients().values()]) as bytes_:
        ortho.resolve()
    elements = sum(p.numel() for p in models.lora_parameters(sample.model).values())
    gram = len(ortho.matrices) * len(TASKS) ** 2 * 4
    copied = 4 * len(TASKS) * elements / 2 if dtype != torch.float32 else 0  # A and B have one shape each
    assert 4 * elements / 2 <= bytes_.peak <= 4 * elements / 2 + copied + 20 * gram
