"""Law 1: one backward captures what T separate `autograd.grad` calls compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ortholora.engine import OrthoLora
from ortholora.engine.grouping import Grouping

from . import _models as models
from ._asserts import (
    BFLOAT16,
    FLOAT32,
    assert_capture_is_exact,
    assert_close,
    assert_same,
    oracle,
    run_step,
)


@st.composite
def row_ids(draw: st.DrawFn, rows: int, tasks: int) -> Tensor | int:
    """Equal runs, unequal runs, interleaved, with absent tasks, or one int."""
    kind = draw(st.sampled_from(["equal", "runs", "any", "int"]))
    if kind == "int":
        return draw(st.integers(0, tasks - 1))
    if kind == "equal" and rows % tasks == 0:
        return torch.arange(tasks).repeat_interleave(rows // tasks)
    ids = torch.tensor(draw(st.lists(st.integers(0, tasks - 1), min_size=rows, max_size=rows)))
    return ids.sort(descending=draw(st.booleans())).values if kind == "runs" else ids


@given(data=st.data(), tasks=st.integers(1, 5), rows=st.integers(1, 10), tokens=st.integers(1, 4))
@settings(max_examples=80)
def test_row_level_ids_on_a_stack(data: st.DataObject, tasks: int, rows: int, tokens: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    sample = models.stack(rows, tokens, sizes, repeat=data.draw(st.booleans()))
    assert_capture_is_exact(sample, [(sample, data.draw(row_ids(rows, tasks)))], tasks)


@given(data=st.data(), tasks=st.integers(1, 5), rows=st.integers(1, 5), tokens=st.integers(1, 6))
@settings(max_examples=50)
def test_token_level_ids_on_a_stack(data: st.DataObject, tasks: int, rows: int, tokens: int) -> None:
    sample = models.stack(rows, tokens, [5, 4, 3])
    flat = data.draw(row_ids(rows * tokens, tasks).filter(lambda ids: not isinstance(ids, int)))
    assert isinstance(flat, Tensor)
    assert_capture_is_exact(sample, [(sample, flat.reshape(rows, tokens))], tasks)


@given(data=st.data(), tasks=st.integers(1, 4), micro=st.integers(1, 4))
@settings(max_examples=30)
def test_accumulation_of_micro_batches(data: st.DataObject, tasks: int, micro: int) -> None:
    sample = models.stack(1, 3, [4, 6, 5], repeat=True)
    parts = []
    for _ in range(micro):
        rows = data.draw(st.integers(1, 5))
        part = models.Sample(sample.model, {"x": torch.randn(rows, 3, 4)}, torch.randn(rows, 3, 5))
        parts.append((part, data.draw(row_ids(rows, tasks))))
    assert_capture_is_exact(sample, parts, tasks)


@pytest.mark.parametrize("build", [models.bert, models.llama, models.gpt2], ids=["bert", "llama", "gpt2"])
@given(data=st.data(), tasks=st.integers(2, 4))
@settings(max_examples=6)
def test_row_level_ids_on_a_transformer(build: Any, data: st.DataObject, tasks: int) -> None:
    sample = build(6, 4)
    assert_capture_is_exact(sample, [(sample, data.draw(row_ids(6, tasks)))], tasks)


@pytest.mark.parametrize("ids", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2], [2, 0, 1, 0, 2, 1]])
def test_token_level_ids_that_only_repeat_the_rows(ids: list[int]) -> None:
    sample = models.bert(6, 4)
    tokens = torch.tensor(ids)[:, None].expand(6, 4)
    assert_capture_is_exact(sample, [(sample, tokens)], 3)


@pytest.mark.parametrize("task_of_document", [[0, 1, 2], [2, 0, 2], [1, 1, 0]])
def test_packed_documents(task_of_document: list[int]) -> None:
    sample, document = models.packed_llama([3, 5, 2])
    ids = torch.tensor(task_of_document)[document][None]  # [1, S]
    assert ids.shape == (1, 10)
    assert_capture_is_exact(sample, [(sample, ids)], 3)


@pytest.mark.parametrize("ids", [torch.tensor([0, 0, 2, 2]), [2, 0, 2, 0], 2, torch.tensor(2), torch.tensor([1])])
def test_absent_tasks_are_zero(ids: Any) -> None:
    sample = models.stack(4, 2, [3, 4])
    ortho = OrthoLora(sample.model, ["a", "b", "c", "d"])
    with ortho.batch(ids):
        models.token_losses(sample.model, sample).sum().backward()
    there = set(torch.as_tensor(ids).flatten().tolist())
    for name, captured in ortho.task_gradients().items():
        assert {t for t in range(4) if captured[t].any()} == there, name


@pytest.mark.parametrize(
    "config", [{"use_rslora": True}, {"lora_bias": True}, {"lora_dropout": 0.4}, {"r": 1}, {"r": 5}]
)
def test_lora_settings(config: dict[str, Any]) -> None:
    sample = models.bert(4, 3, **config)
    assert_capture_is_exact(sample, [(sample, torch.tensor([0, 1, 0, 2]))] * 2, 3)


@pytest.mark.parametrize("mode", ["none", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("build", [models.bert, models.llama], ids=["bert", "llama"])
def test_activation_checkpointing(build: Any, dropout: float, mode: str) -> None:
    calls = []

    def checkpoint(model: Any) -> None:
        if mode != "none":
            # transformers 5 renamed it
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": mode == "reentrant"})
            model.enable_input_require_grads()
        layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
        layer.register_forward_pre_hook(lambda *_: calls.append(mode))

    sample = build(4, 3, lora_dropout=dropout)
    parts = [(sample, torch.tensor([0, 0, 1, 2])), (sample.rows(slice(0, 3)), torch.tensor([1, 0, 1]))]
    assert_capture_is_exact(sample, parts, 3, prepare=checkpoint, try_out=False)
    # A recomputation for each micro-batch, by either path.
    assert len(calls) == 2 * (2 if mode == "none" else 4)


@pytest.mark.parametrize("ids", [torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 1]), 1])
def test_lora_in_bfloat16(ids: Any) -> None:
    sample = models.bert(4, 3)
    sample.model.to(torch.bfloat16)
    assert_capture_is_exact(sample, [(sample, ids)] * 2, 2, BFLOAT16)


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside autocast", "backward outside"])
def test_autocast_in_bfloat16(inside: bool) -> None:
    sample = models.llama(4, 3)
    original, ids = sample.fork(), torch.tensor([1, 0, 0, 1])
    ortho = OrthoLora(sample.model, ["a", "b"])
    with ortho.batch(ids):
        with torch.autocast("cpu", torch.bfloat16):
            loss = models.token_losses(sample.model, sample).mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        losses = models.task_losses(models.token_losses(original, sample), ids, 2)
    parameters = models.lora_parameters(original)
    expected = {
        name: torch.stack(grads)
        for name, *grads in zip(
            parameters,
            *(torch.autograd.grad(loss, list(parameters.values()), retain_graph=True) for loss in losses),
            strict=True,
        )
    }
    captured = ortho.task_gradients()
    assert all(t.dtype == torch.float32 for t in captured.values())
    assert_same(captured, expected, BFLOAT16)


def test_autocast_forward_is_that_of_plain_peft() -> None:
    sample = models.llama(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"], fused=False)
    with ortho.batch(0), torch.autocast("cpu", torch.bfloat16):
        found = models.token_losses(sample.model, sample)
    with torch.autocast("cpu", torch.bfloat16):
        expected = models.token_losses(original, sample)
    assert torch.equal(found, expected)


def test_one_batch_of_eight_is_eight_batches_of_one() -> None:
    sample = models.bert(8, 4)
    whole, single = sample.fork(), sample.fork()
    ids = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2])
    results = []
    for model, cuts in ((whole, [8]), (single, [1] * 8), (sample.model, [3, 1, 4])):
        ortho = OrthoLora(model, ["a", "b", "c"])
        start = 0
        for rows in cuts:
            part = sample.rows(slice(start, start + rows))
            with ortho.batch(ids[start : start + rows]):
                models.token_losses(model, part).sum().backward()
            start += rows
        captured = {name: t.clone() for name, t in ortho.task_gradients().items()}
        ortho.resolve()
        results.append((captured, {n: p.grad for n, p in models.lora_parameters(model).items()}))
    for captured, written in results[1:]:
        assert_same(captured, results[0][0])
        assert_same(written, results[0][1])


def test_two_active_adapters() -> None:
    from peft import LoraConfig

    sample = models.stack(4, 3, [5, 6, 4])
    sample.model.add_adapter("second", LoraConfig(r=3, target_modules=["layers.0"]))
    sample.model.base_model.set_adapter(["default", "second"])
    models.draw_lora(sample.model)
    names = models.lora_parameters(sample.model)
    assert sum("second" in n for n in names) == 2
    assert sum("default" in n for n in names) == 4
    assert_capture_is_exact(sample, [(sample, torch.tensor([0, 1, 1, 0]))], 2)


def test_only_trainable_matrices_are_captured() -> None:
    sample = models.stack(4, 3, [5, 6])
    for name, parameter in models.lora_parameters(sample.model).items():
        parameter.requires_grad_("lora_B" in name)  # LoRA-FA freezes A
    assert_capture_is_exact(sample, [(sample, torch.tensor([0, 1, 1, 0]))], 2)


def test_an_input_that_needs_no_gradient_and_one_that_does() -> None:
    for needs in (True, False):
        sample = models.stack(4, 3, [5, 6])
        original = sample.fork()
        x = sample.inputs["x"].requires_grad_(needs)
        ortho = OrthoLora(sample.model, ["a", "b"])
        run_step(ortho, sample.model, [(sample, torch.tensor([0, 1, 1, 0]))])
        found = x.grad
        x.grad = None
        (models.token_losses(original, sample).sum() / 12).backward()
        assert (found is None) == (not needs)
        if needs:
            assert_close(found, x.grad, what="d_x")


def test_lora_bias_gets_the_plain_gradient() -> None:
    sample = models.stack(4, 3, [5, 6], lora_bias=True)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b"])
    parts = [(sample, torch.tensor([0, 1, 1, 0]))]
    run_step(ortho, sample.model, parts)
    ortho.resolve()
    (models.token_losses(original, sample).sum() / 12).backward()
    biases = {n: p for n, p in original.named_parameters() if p.requires_grad and n.endswith("lora_B.default.bias")}
    assert len(biases) == 1
    for name, parameter in biases.items():
        assert_close(sample.model.get_parameter(name).grad, parameter.grad, what=name)


@pytest.mark.parametrize("outer", [nn.Identity(), None], ids=["inside another module", "a PeftModel"])
def test_names_are_those_of_the_given_module(outer: nn.Module | None) -> None:
    sample = models.stack(2, 2, [3, 4])
    model = sample.model if outer is None else nn.Sequential(sample.model, outer)
    ortho = OrthoLora(model, ["a", "b"])
    assert [m.name for m in ortho.matrices] == list(models.lora_parameters(model))


def test_a_parameter_tied_between_two_layers_is_one_block() -> None:
    sample = models.stack(4, 3, [4, 4, 4])
    first, second = (sample.model.base_model.model.layers[i] for i in (0, 1))
    second.lora_A["default"].weight = first.lora_A["default"].weight
    original = sample.fork()
    parts = [(sample, torch.tensor([0, 1, 1, 0]))]
    ortho = OrthoLora(sample.model, ["a", "b"])
    run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), oracle(original, parts, 2))
    assert len(ortho.resolve().blocks) == 3


@pytest.mark.parametrize("ids", [[0, 0, 0, 0], [2, 1, 1, 2], [0, 1, 2, 2]], ids=str)
def test_a_step_does_not_remember_the_one_before(ids: list[int]) -> None:
    """Buffers are not zeroed between steps: tasks absent now must not show what they had."""
    sample = models.bert(4, 3)
    original = sample.fork()
    ortho = OrthoLora(sample.model, ["a", "b", "c"])
    run_step(ortho, sample.model, [(sample, torch.tensor([0, 1, 2, 0]))])
    ortho.resolve()
    sample.model.zero_grad()
    parts = [(sample, torch.tensor(ids)), (sample.rows(slice(0, 2)), torch.tensor(ids[:2]))]
    run_step(ortho, sample.model, parts)
    assert_same(ortho.task_gradients(), oracle(original, parts, 3))


@given(st.data())
@settings(max_examples=60)
def test_grouping_products_are_masked_sums(data: st.DataObject) -> None:
    tasks, rows, tokens = (data.draw(st.integers(1, n)) for n in (5, 8, 3))
    ids = data.draw(row_ids(rows, tasks))
    delta, x = torch.randn(rows, tokens, 3), torch.randn(rows, tokens, 4)
    grouping = Grouping(ids, tasks)
    of_row = torch.full((rows,), ids) if isinstance(ids, int) else ids
    expected = torch.stack(
        [
            torch.einsum("bsd,bsk->dk", delta[of_row == t], x[of_row == t])
            for t in range(tasks)
            if bool((of_row == t).any())
        ]
    )
    assert_close(grouping.task_products(delta, x, "here"), expected, FLOAT32)
