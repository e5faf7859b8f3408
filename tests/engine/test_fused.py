"""The fused path against PEFT, the general path and the oracle (`test_not_fused.py`: where it is not taken)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from ortholora.engine import OrthoLora, fused

from . import _models as models
from ._asserts import FLOAT32, assert_close, assert_same, joint_step, oracle, run_step
from ._one_layer import One, fused_layers, layer_of, one

IDS = torch.tensor([0, 1, 1, 0])


def run_one(model: nn.Module, x: Tensor, upstream: Tensor, ids: Any, fused: bool) -> dict[str, Tensor]:
    """Output, input gradient, and the captured and plain gradients of a layer."""
    ortho = OrthoLora(model, ["a", "b", "c"], fused=fused)
    assert fused_layers(model) == int(fused)
    x = x.detach().requires_grad_()
    torch.manual_seed(3)
    with ortho.batch(ids):
        out = model(x)
        out.backward(upstream)
    found = {"output": out.detach(), "d_x": x.grad}
    found |= {f"task {name}": t.clone() for name, t in ortho.task_gradients().items()}
    found |= {f"grad {name}": p.grad for name, p in models.lora_parameters(model).items()}
    ortho.detach()
    assert fused_layers(model) == 0
    model.zero_grad()
    return found


@given(data=st.data(), rows=st.integers(1, 6), k=st.integers(1, 7), d=st.integers(1, 7), r=st.integers(1, 4))
@settings(max_examples=120)
def test_fused_is_general(data: st.DataObject, rows: int, k: int, d: int, r: int) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    lead = (rows, *data.draw(st.lists(st.integers(1, 3), max_size=2)))
    dropout, transposed = data.draw(st.sampled_from([0.0, 0.0, 0.4])), data.draw(st.booleans())
    model = one(
        k, d, data.draw(st.booleans()), transposed, r=r, lora_dropout=dropout, use_rslora=data.draw(st.booleans())
    )
    model.to(dtype)
    x, upstream = torch.randn(*lead, k).to(dtype), torch.randn(*lead, d).to(dtype)
    if data.draw(st.booleans()):  # layouts that are not contiguous
        x, upstream = (torch.stack([t, t], -1)[..., 0] for t in (x, upstream))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)))
    expected, found = (run_one(model, x, upstream, ids, fused) for fused in (False, True))
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        # In bf16 each product is rounded at another place: errors of 2^-9 of the terms, which may cancel.
        scale = 1.0 if dtype != torch.bfloat16 else 1.0 + float(upstream.abs().max() * x.abs().max() * 10)
        tolerance = FLOAT32 if dtype != torch.bfloat16 else 0.05 * scale
        difference = float((found[name].double() - tensor.double()).norm())
        assert difference <= tolerance * float(tensor.double().norm()) + tolerance * 1e-3 * scale, name


@pytest.mark.parametrize("build", [models.bert, models.llama, models.gpt2], ids=["bert", "llama", "gpt2"])
def test_every_layer_of_a_model_is_fused(build: Any) -> None:
    model = build(4, 3).model
    ortho = OrthoLora(model, ["a", "b"])
    layers = len(ortho.matrices) // 2
    assert fused_layers(model) == layers > 1
    assert f"{layers} layers fused, 0 by the general path" in ortho.summary()
    ortho.detach()
    ortho = OrthoLora(model, ["a", "b"], fused=False)
    assert fused_layers(model) == 0
    assert f"general path: {layers} layers (switched off)" in ortho.summary()


def error_against_float32(model: nn.Module, truth: dict[str, Tensor], sample: models.Sample) -> float:
    errors = [
        float((p.grad.double() - truth[name].double()).norm() / truth[name].double().norm())
        for name, p in models.lora_parameters(model).items()
    ]
    return sum(errors) / len(errors)


def test_bfloat16_is_as_exact_as_autocast() -> None:
    """A bf16 base, LoRA in float32 (PEFT's default): fused products are bf16, as under autocast."""
    sample = models.bert(16, 6)
    truth_model = sample.fork()
    joint_step(truth_model, [(sample, 0)])
    truth = {name: p.grad for name, p in models.lora_parameters(truth_model).items()}

    def half(model: nn.Module) -> nn.Module:
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
        return model

    ours, plain = half(sample.fork()), sample.fork()
    ortho = OrthoLora(ours, ["a", "b"], rule="sum")
    run_step(ortho, ours, [(sample, 0)])
    ortho.resolve()
    with torch.autocast("cpu", torch.bfloat16):
        joint_step(plain, [(sample, 0)])
    error, reference = (error_against_float32(model, truth, sample) for model in (ours, plain))
    assert 0 < error < 2 * reference < 0.1
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in models.lora_parameters(ours).values())


@contextlib.contextmanager
def counted_storage(kept: dict[int, tuple[int, torch.dtype]], model: nn.Module) -> Any:
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield


@pytest.mark.parametrize(("dropout", "kept_bytes"), [(0.0, 0), (0.5, 1)])
def test_what_a_layer_keeps(dropout: float, kept_bytes: int) -> None:
    """The input (shared with whoever else keeps it), `x Aᵀ`, and with dropout one byte an input."""
    rows, k, d, r = 12, 64, 32, 2
    model = one(k, d, r=r, lora_dropout=dropout)
    model.base_model.model.layer.base_layer.to(torch.bfloat16)
    x = torch.randn(rows, k, dtype=torch.bfloat16, requires_grad=True)
    kept: dict[int, tuple[int, torch.dtype]] = {}
    ortho = OrthoLora(model, ["a", "b"])
    with ortho.batch(0), counted_storage(kept, model):
        out = model(x)
    assert out.dtype == torch.bfloat16
    kept.pop(x.untyped_storage().data_ptr())
    assert sum(size for size, _ in kept.values()) == rows * r * 2 + rows * k * kept_bytes
    assert torch.float32 not in {dtype for _, dtype in kept.values()}
    plain: dict[int, tuple[int, torch.dtype]] = {}
    ortho.detach()
    with counted_storage(plain, model):
        assert model(x).requires_grad
    assert sum(size for size, _ in plain.values()) >= rows * k * 4  # PEFT's float32 copy of the input


def same_as_plain(model: Any, use: Callable[[Any], Any]) -> None:
    """What `use` returns does not depend on whether OrthoLora is attached."""
    expected = use(model)
    OrthoLora(model, ["a", "b"])
    assert fused_layers(model) == 1
    found = use(model)
    assert torch.equal(found, expected)


X = torch.randn(4, 3, 5)


def disabled(model: Any) -> Tensor:
    with model.disable_adapter():
        return model(X)


def merged(model: Any) -> Tensor:
    model.merge_adapter()
    try:
        return model(X)
    finally:
        model.unmerge_adapter()


def evaluated(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(X)


def several(model: Any) -> Tensor:
    if "second" not in model.peft_config:
        torch.manual_seed(0)
        model.add_adapter("second", LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False))
    model.eval()
    with torch.no_grad():
        return layer_of(model)(X[:2, 0], adapter_names=["default", "second"])


@pytest.mark.parametrize("use", [disabled, merged, evaluated, several])
def test_other_calls_are_those_of_peft(use: Callable[[Any], Any]) -> None:
    same_as_plain(one(5, 6), use)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_layer_draws_its_mask_in_the_same_way(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU another kernel would draw another mask, and the gradient would be of another forward."""
    sample = models.llama(4, 3, lora_dropout=0.5)
    enable = (
        getattr(sample.model, "activation_checkpointing_enable", None) or sample.model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": reentrant})
    sample.model.enable_input_require_grads()
    masks: list[Tensor] = []

    def drawn(rows: Tensor, dropout: float) -> Tensor:
        masks.append(torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - dropout))
        return masks[-1]

    monkeypatch.setattr(fused, "_draw_mask", drawn)
    ortho = OrthoLora(sample.model, ["a", "b"])
    layers = fused_layers(sample.model)
    run_step(ortho, sample.model, [(sample, IDS)])
    assert len(masks) == 2 * layers
    first = {mask.numpy().tobytes() for mask in masks[:layers]}
    assert first == {mask.numpy().tobytes() for mask in masks[layers:]}
    ortho.resolve()


def test_a_forward_without_gradients_marks_nothing_as_run() -> None:
    """`ran` without a gradient would be an error of law 8."""
    model = one(5, 6)
    ortho = OrthoLora(model, ["a", "b"])
    with ortho.batch(IDS), torch.no_grad():
        model(X)
    assert not any(any(group.ran) for group in ortho._groups)


def test_a_hook_added_later_is_called() -> None:
    model, calls = one(5, 6), []
    ortho = OrthoLora(model, ["a", "b"], try_out=False)
    layer_of(model).base_layer.register_forward_hook(lambda *_: calls.append(1))
    with ortho.batch(IDS):
        model(X).sum().backward()
    assert calls == [1]
    assert len(ortho.task_gradients()) == 2  # captured by the general path underneath


def test_scaling_is_read_in_every_call() -> None:
    model = one(5, 6)
    ortho = OrthoLora(model, ["a", "b"])
    outputs = []
    for scale in (1.0, 3.0):
        layer_of(model).set_scale("default", scale)
        with ortho.batch(IDS):
            outputs.append(model(X).detach())
    with model.disable_adapter():
        base = model(X).detach()
    assert_close(outputs[1] - base, 3 * (outputs[0] - base), 1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks at it
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
def test_torch_compile_runs_the_layers_between_graphs(fused: bool) -> None:
    """With the backend that also traces the backward; `eager` is a part of it."""
    torch._dynamo.reset()
    sample = models.llama(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(sample.model, backend=counting)
    for _ in range(2):
        run_step(ortho, compiled, [(sample, IDS)])
        assert_same(ortho.task_gradients(), oracle(original, [(sample, IDS)], 2))
        ortho.resolve()
        sample.model.zero_grad()
    assert len(graphs) > 3


def test_torch_compile_of_the_whole_graph_is_refused_by_name() -> None:
    torch._dynamo.reset()
    sample = models.stack(4, 3, [5, 6])
    ortho = OrthoLora(sample.model, ["a", "b"])
    compiled = torch.compile(sample.model, backend="eager", fullgraph=True)
    with ortho.batch(IDS), pytest.raises(torch._dynamo.exc.Unsupported, match="leave out fullgraph=True"):
        compiled(**sample.inputs)


def test_get_peft_model_defaults_are_fused() -> None:
    model = get_peft_model(One(5, 6, True, False).bfloat16(), LoraConfig(target_modules=["layer"])).train()
    assert layer_of(model).lora_A["default"].weight.dtype == torch.float32
    OrthoLora(model, ["a", "b"])
    assert fused_layers(model) == 1
