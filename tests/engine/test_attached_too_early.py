"""Law 8 for everything that may happen to a model after OrthoLora was built: captured, or an error that names it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from packaging import version
from peft import LoraConfig
from torch import nn

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import BFLOAT16, assert_same, gradients, oracle, run_step

IDS = torch.tensor([0, 1, 0, 1])
BUILDS: dict[str, Callable[[int, int], models.Sample]] = {
    "one pass": models.bert,
    "Conv1D": models.gpt2,
    "lora_bias": lambda rows, tokens: models.bert(rows, tokens, lora_bias=True),
    **models.TASK_PURE,
}
#: torch's grouped product of the experts knows no float64, and bfloat16 only for wider ones.
CASTABLE = {name: build for name, build in BUILDS.items() if name != "target_parameters"}

castable = pytest.mark.parametrize("build", CASTABLE.values(), ids=CASTABLE.keys())
both_paths = pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])


@pytest.fixture
def sample() -> models.Sample:
    return models.stack(4, 3, [5, 6, 4])


def step(ortho: OrthoLora, sample: models.Sample) -> None:
    run_step(ortho, sample.model, [(sample, 0), (sample, 1)])
    ortho.resolve()


def through_meta(model: nn.Module) -> None:
    """As tools do that place a model late: every parameter is another object afterwards."""
    kept = [(dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    model.to("meta")
    for module, (parameters, buffers) in zip(model.modules(), kept, strict=True):
        for name, p in parameters.items():
            assert p is None or module._parameters[name] is not p
            module._parameters[name] = None if p is None else nn.Parameter(p.detach().clone(), p.requires_grad)
        module._buffers.update(buffers)


# ---- moves and casts: still captured, exactly ---------------------------------------------------------


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
@both_paths
def test_every_parameter_was_replaced_by_a_move(build: Any, fused: bool) -> None:
    sample = build(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    through_meta(sample.model)
    assert_captures_and_trains(ortho, sample, original, 2e-5)


@castable
@both_paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_cast_after_attaching(build: Any, fused: bool, dtype: torch.dtype) -> None:
    sample = build(4, 3)
    original = sample.fork().to(dtype)
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    sample.model.to(dtype)
    sample.inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in sample.inputs.items()}
    assert_captures_and_trains(ortho, sample, original, 2 * BFLOAT16 if dtype == torch.bfloat16 else 1e-5)
    assert all(g.dtype == dtype for g in gradients(sample.model).values())


def assert_captures_and_trains(ortho: OrthoLora, sample: models.Sample, original: nn.Module, tolerance: float) -> None:
    parts = [(sample, 0), (sample, 1)]
    expected = oracle(original, parts, 2)
    run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), {name: t.float() for name, t in expected.items()}, tolerance)
    before = {name: p.detach().clone() for name, p in models.lora_parameters(sample.model).items()}
    ortho.resolve()
    torch.optim.SGD(models.lora_parameters(sample.model).values(), lr=1.0).step()
    assert all(not torch.equal(before[n], p) for n, p in models.lora_parameters(sample.model).items())


@both_paths
def test_attached_before_pefts_cast_of_the_adapter(fused: bool) -> None:
    """PEFT casts a half-precision adapter to float32 when it is loaded or added: here only after the attachment."""
    sample = models.bert(4, 3)
    sample.model.to(torch.bfloat16)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    for model in (sample.model, original):
        model.base_model._cast_adapter_dtype("default", autocast_adapter_dtype=True)
    assert {p.dtype for p in models.lora_parameters(sample.model).values()} == {torch.float32}
    run_step(ortho, sample.model, [(sample, IDS)])
    assert_same(ortho.task_gradients(), oracle(original, [(sample, IDS)], 2), BFLOAT16)
    ortho.resolve()


# ---- adapters that were replaced, deleted, frozen, unfrozen --------------------------------------------


def add_again(model: Any) -> None:
    """Deleted, and added under the same name: the matrices are other modules (or parameters) of the same names."""
    config = model.peft_config["default"]
    model.add_adapter("other", copy.deepcopy(config))
    model.set_adapter("other")
    model.delete_adapter("default")
    model.add_adapter("default", config)
    model.set_adapter("default")
    model.delete_adapter("other")
    models.draw_lora(model)


@pytest.mark.parametrize("steps_before", [0, 1, 5], ids=lambda n: f"after {n} steps")
@pytest.mark.parametrize("build", [models.bert, models.gpt2, models.dora, models.convolution], ids=lambda b: b.__name__)
def test_an_adapter_that_is_added_again(build: Any, steps_before: int) -> None:
    """In every step, not only in the checked ones."""
    sample = build(4, 3)
    ortho = OrthoLora(sample.model, ["a", "b"])
    for _ in range(steps_before):
        step(ortho, sample)
        sample.model.zero_grad()
    add_again(sample.model)
    run_step(ortho, sample.model, [(sample, 0), (sample, 1)])
    with pytest.raises(CaptureError, match=r"lora_A\.default\.weight was replaced after OrthoLora(?s:.*)anew"):
        ortho.resolve()


@pytest.mark.skipif(
    version.parse(peft.__version__) < version.parse("0.21"), reason="`update_layer` takes other arguments"
)
def test_an_embedding_adapter_that_is_added_again_is_captured() -> None:
    """Its matrices are parameters, looked up anew for each micro-batch."""
    sample = models.embedding(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"])
    words = sample.model.base_model.model.words
    config = sample.model.peft_config["default"]
    words.delete_adapter("default")
    with pytest.raises(CaptureError, match=r"lora_embedding_A\.default is gone(?s:.*)anew"), ortho.batch(0):
        pass
    words.update_layer("default", r=2, lora_alpha=4, config=config)
    run_step(ortho, sample.model, [(sample, 0), (sample, 1)])
    with pytest.raises(CaptureError, match=r"words\.lora_embedding_A\.default was frozen"):  # PEFT adds it inactive
        ortho.resolve()
    ortho.discard()
    sample.model.zero_grad()
    words.set_adapter("default")
    models.draw_lora(sample.model)
    original.load_state_dict(sample.model.state_dict())
    run_step(ortho, sample.model, [(sample, 0), (sample, 1)])
    assert_same(ortho.task_gradients(), oracle(original, [(sample, 0), (sample, 1)], 2))
    ortho.resolve()


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_matrix_whose_module_was_replaced(sample: models.Sample, part: str) -> None:
    """The fused layer must not go on with the module that is gone."""
    ortho = OrthoLora(sample.model, ["a", "b"])
    for _ in range(3):
        step(ortho, sample)
        sample.model.zero_grad()
    modules = getattr(sample.model.base_model.model.layers[1], part)
    modules["default"] = nn.Linear(modules["default"].in_features, modules["default"].out_features, bias=False)
    output = models.token_losses(sample.model, sample)
    with ortho.batch(IDS):
        assert torch.equal(models.token_losses(sample.model, sample), output)
        models.token_losses(sample.model, sample).mean().backward()
    with pytest.raises(CaptureError, match=rf"layers\.1\.{part}\.default\.weight was replaced"):
        ortho.resolve()


def test_dropout_that_was_set_after_attaching(sample: models.Sample) -> None:
    """The fused layer must use the dropout that is there, not the one that was."""
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"])
    for model in (sample.model, original):
        for layer in model.base_model.model.layers:
            layer.lora_dropout["default"] = nn.Dropout(0.5)
    torch.manual_seed(1)
    run_step(ortho, sample.model, [(sample, IDS)])
    torch.manual_seed(1)
    assert_same(ortho.task_gradients(), oracle(original, [(sample, IDS)], 2))


@pytest.mark.parametrize("build", [models.bert, models.embedding, models.dora], ids=lambda b: b.__name__)
@pytest.mark.parametrize("steps_before", [0, 4], ids=lambda n: f"after {n} steps")
def test_a_matrix_that_was_frozen(build: Any, steps_before: int) -> None:
    sample = build(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"])
    for _ in range(steps_before):
        step(ortho, sample)
        sample.model.zero_grad()
    name, parameter = list(models.lora_parameters(sample.model).items())[1]
    parameter.requires_grad_(False)
    run_step(ortho, sample.model, [(sample, 0), (sample, 1)])
    with pytest.raises(CaptureError, match=rf"{name} was frozen after OrthoLora(?s:.*)requires_grad_"):
        ortho.resolve()
    ortho.discard()
    sample.model.zero_grad()
    parameter.requires_grad_(True)  # and all is well again
    run_step(ortho, sample.model, [(sample, 0), (sample, 1)])
    assert_same(ortho.task_gradients(), oracle(original, [(sample, 0), (sample, 1)], 2))
    ortho.resolve()


@pytest.mark.parametrize("steps_before", [0, 4], ids=lambda n: f"after {n} steps")
def test_a_matrix_that_was_unfrozen(sample: models.Sample, steps_before: int) -> None:
    """It would train jointly, without a word."""
    name, parameter = list(models.lora_parameters(sample.model).items())[2]
    parameter.requires_grad_(False)
    ortho = OrthoLora(sample.model, ["a", "b"])
    for _ in range(steps_before):
        step(ortho, sample)
        sample.model.zero_grad()
    parameter.requires_grad_(True)
    run_step(ortho, sample.model, [(sample, IDS)])
    with pytest.raises(CaptureError, match=rf"{name} was added or activated after"):
        ortho.resolve()


def test_everything_frozen_but_a_head(sample: models.Sample) -> None:
    """What `prepare_model_for_kbit_training` does when it comes too late."""
    ortho = OrthoLora(sample.model, ["a", "b"])
    sample.model.requires_grad_(False)
    head = nn.Linear(4, 4)
    with ortho.batch(IDS):
        head(sample.model(**sample.inputs)).square().mean().backward()
    with pytest.raises(CaptureError, match=r"layers\.0\.lora_A\.default\.weight was frozen after"):
        ortho.resolve()


def test_an_adapter_that_is_activated_in_a_later_step(sample: models.Sample) -> None:
    sample.model.add_adapter("later", LoraConfig(r=2, target_modules=["layers.0"]))
    ortho = OrthoLora(sample.model, ["a", "b"])
    for _ in range(4):
        step(ortho, sample)
        sample.model.zero_grad()
    sample.model.base_model.set_adapter(["default", "later"])
    run_step(ortho, sample.model, [(sample, IDS)])
    with pytest.raises(CaptureError, match=r"layers\.0\.lora_A\.later\.weight was added or activated after"):
        ortho.resolve()


def test_a_copy_is_not_captured_and_says_so(sample: models.Sample) -> None:
    ortho = OrthoLora(sample.model, ["a", "b"])
    twin = copy.deepcopy(sample.model)
    with ortho.batch(IDS), pytest.raises(CaptureError, match="without task ids"):
        models.token_losses(twin, sample).mean().backward()
    with torch.no_grad():
        assert torch.equal(models.token_losses(twin, sample), models.token_losses(sample.model, sample))


def test_a_tie_that_a_move_broke() -> None:
    """Two matrices were one parameter when OrthoLora was built, and are two now: one of them would train jointly."""
    sample = models.stack(4, 3, [6, 6, 6])
    first, second = (sample.model.base_model.model.layers[i] for i in (0, 1))
    second.lora_A["default"].weight = first.lora_A["default"].weight
    ortho = OrthoLora(sample.model, ["a", "b"])
    second.lora_A["default"].weight = nn.Parameter(first.lora_A["default"].weight.detach().clone())
    run_step(ortho, sample.model, [(sample, IDS)])
    with pytest.raises(CaptureError, match=r"lora_A\.default\.weight"):
        ortho.resolve()
