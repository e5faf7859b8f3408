"""Law 11: what only looks like the batch is found out by trying, and what is the batch is left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from ortholora.engine import OrthoLora
from ortholora.engine.trial import trial
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_same, run_step
from ._asserts import oracle as oracle_of_step
from ._reference import task_gradients

ROWS = 4
IDS = torch.tensor([0, 1, 2, 1])
TASKS = ["a", "b", "c"]

RowLosses = Callable[[nn.Module], Tensor]


def oracle(model: nn.Module, losses: RowLosses, ids: Tensor = IDS) -> dict[str, Tensor]:
    """Name → `[T, *shape]`, by T separate losses."""
    parameters = models.lora_parameters(model)
    rows = losses(model)
    of_tasks = [(rows * (ids == t)).sum() for t in range(len(TASKS))]
    return dict(zip(parameters, task_gradients(of_tasks, list(parameters.values())), strict=True))


def train(ortho: OrthoLora, model: nn.Module, losses: RowLosses, ids: Any = IDS) -> None:
    with ortho.batch(ids):
        losses(model).sum().backward()


def is_wrong_by(model: nn.Module, losses: RowLosses, ids: Any = IDS) -> float:
    """Largest relative error of what is captured when nobody tries the model out."""
    expected = oracle(models.copy.deepcopy(model), losses)
    ortho = OrthoLora(model, TASKS, try_out=False)
    train(ortho, model, losses, ids)
    found = ortho.task_gradients()
    ortho.detach()
    model.zero_grad()
    return max(float((found[name] - g).norm() / g.norm().clamp_min(1e-12)) for name, g in expected.items())


# ---- models that were wrong without a word ---------------------------------------------------------------


class Tower(nn.Module):
    """Images `[n, k]` whose features go to the rows of text that ask for them, as in LLaVA."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, images: Tensor, text: Tensor, asks: Tensor) -> Tensor:
        features = torch.tanh(self.vision(images))
        mixed = text.masked_scatter(asks[:, :, None].expand_as(text), features)
        return self.text(torch.tanh(mixed.cumsum(1)))


def tower(*images_per_row: int) -> tuple[nn.Module, RowLosses]:
    asks = torch.zeros(ROWS, 3, dtype=torch.bool)
    for row, images in enumerate(images_per_row):
        asks[row, :images] = True
    inputs = torch.randn(sum(images_per_row), 3), torch.randn(ROWS, 3, 5), asks
    target = torch.randn(ROWS, 3, 4)
    model = models.peft(Tower(), ["vision", "text"])
    return model, lambda m: ((m(*inputs) - target) ** 2).sum((1, 2))


def time_first() -> tuple[nn.Module, RowLosses]:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=False)
    model = models.peft(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), ["linear1", "linear2"])
    x, target = torch.randn(ROWS, ROWS, 8), torch.randn(ROWS, ROWS, 8)  # as long as there are rows
    return model, lambda m: ((m(x) - target) ** 2).sum((0, 2))


def positions() -> tuple[nn.Module, RowLosses]:
    model = models.peft(models.Positions(), ["position", "out"])
    x, target = torch.randn(ROWS, ROWS, 5), torch.randn(ROWS, ROWS, 4)
    return model, lambda m: ((m(x) - target) ** 2).sum((1, 2))


class Sorted(nn.Module):
    """Sorts its rows, as `pack_padded_sequence` does, and puts them back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort(descending=True)
        inner = torch.tanh(self.inner(x[order]))
        return self.out(inner[order.argsort()])


def sorted_rows() -> tuple[nn.Module, RowLosses]:
    model = models.peft(Sorted(), ["inner", "out"])
    x, target, lengths = torch.randn(ROWS, 3, 5), torch.randn(ROWS, 3, 4), torch.tensor([1, 3, 2, 3])
    return model, lambda m: ((m(x, lengths) - target) ** 2).sum((1, 2))


class Matcher(nn.Module):
    """Compares texts with the texts of the labels, both by way of one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = models.Stack([5, 6])

    def forward(self, texts: Tensor, labels: Tensor) -> Tensor:
        return self.encoder(texts) @ self.encoder(labels).T


def labels_inside() -> tuple[nn.Module, RowLosses]:
    model = models.peft(Matcher(), ["layers.0"])
    texts, labels, right = torch.randn(ROWS, 5), torch.randn(ROWS, 5), torch.tensor([2, 0, 3, 3])
    return model, lambda m: nn.functional.cross_entropy(m(texts, labels), right, reduction="none")


def labels_outside() -> tuple[nn.Module, RowLosses]:
    model = models.peft(models.Stack([5, 6]), ["layers.0"])
    texts, labels, right = torch.randn(ROWS, 5), torch.randn(ROWS, 5), torch.tensor([2, 0, 3, 3])
    return model, lambda m: nn.functional.cross_entropy(m(texts) @ m(labels).T, right, reduction="none")


WRONG: dict[str, tuple[Callable[[], tuple[nn.Module, RowLosses]], str]] = {
    "images of some rows": (lambda: tower(0, 0, 2, 2), r"vision\.lora_[AB]"),
    "time first": (time_first, r"linear1\.lora_[AB]"),
    "positions": (positions, r"position\.lora_[AB]"),
    "rows sorted inside": (sorted_rows, r"inner\.lora_[AB]"),
    "texts of labels, in the model": (labels_inside, r"layers\.0\.lora_[AB]"),
    "texts of labels, in the loss": (labels_outside, "The loss mixes the rows"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general path"])
def test_what_only_looks_like_the_batch_is_refused(name: str, fused: bool) -> None:
    build, said = WRONG[name]
    model, losses = build()
    assert is_wrong_by(model, losses) > 0.05, "the test proves nothing"
    ortho = OrthoLora(model, TASKS, fused=fused)
    with pytest.raises(CaptureError, match=said) as refused:
        train(ortho, model, losses)
    assert "task-pure micro-batches" in refused.value.todo
    assert "try_out=False" in refused.value.todo
    # What it did not name is right: only the module that was named has to be left out.
    ortho.detach()


@pytest.mark.parametrize("name", ["time first", "positions"])
def test_token_level_ids_change_nothing(name: str) -> None:
    build, said = WRONG[name]
    model, losses = build()
    tokens = IDS[:, None].expand(ROWS, ROWS)
    if name == "time first":
        assert is_wrong_by(model, losses, tokens) > 0.05
    with pytest.raises(CaptureError, match=said):
        train(OrthoLora(model, TASKS), model, losses, tokens)


# ---- what is the batch, in all the ways it may be run -----------------------------------------------------


def right_by(sample: models.Sample, ids: Any = IDS, original: nn.Module | None = None, **settings: Any) -> OrthoLora:
    """Capture is the oracle (of a copy of the model), and nothing was refused; leaves OrthoLora attached."""
    original = sample.fork() if original is None else original
    ortho = OrthoLora(sample.model, TASKS, **settings)
    torch.manual_seed(7)
    run_step(ortho, sample.model, [(sample, ids)])
    torch.manual_seed(7)
    assert_same(ortho.task_gradients(), oracle_of_step(original, [(sample, ids)], len(TASKS)))
    return ortho


def test_as_many_tokens_as_rows_are_no_offence() -> None:
    for ids in (IDS, IDS[:, None].expand(ROWS, ROWS)):
        right_by(models.bert(ROWS, ROWS), ids)
        right_by(models.llama(ROWS, ROWS), ids, fused=False)


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_under_activation_checkpointing(reentrant: bool) -> None:
    """What is wrong is found there, too, and what is right is right, in dropout that is drawn once."""
    sample = models.bert(ROWS, ROWS, lora_dropout=0.4)
    original = sample.fork()
    known = hasattr(sample.model, "activation_checkpointing_enable")  # transformers 5 renamed it
    enable = sample.model.activation_checkpointing_enable if known else sample.model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    sample.model.enable_input_require_grads()
    right_by(sample, original=original)
    model, _ = positions()
    base = model.base_model.model
    inner = base.forward
    base.forward = lambda x: torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=reentrant)
    start = torch.randn(ROWS, ROWS, 5, requires_grad=True)
    with pytest.raises(CaptureError, match=r"position\.lora_[AB]"):
        train(OrthoLora(model, TASKS), model, lambda m: (m(start) ** 2).sum((1, 2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "weights"])
def test_in_half_precision(dtype: torch.dtype, cast: bool) -> None:
    sample = models.bert(ROWS, ROWS)
    model, losses = positions()
    if not cast:
        sample.model.to(dtype)
    with torch.autocast("cpu", dtype, enabled=cast and dtype != torch.float32):
        run_step(OrthoLora(sample.model, TASKS), sample.model, [(sample, IDS)])
        with pytest.raises(CaptureError, match=r"position\.lora_[AB]"):
            train(OrthoLora(model, TASKS), model, losses)


def test_documents_in_one_row() -> None:
    sample, document = models.packed_llama([3, 5, 2, 4])
    right_by(sample, torch.tensor([0, 1, 2, 1])[document][None])


def test_tasks_of_tokens_that_read_each_other_are_refused() -> None:
    sample = models.llama(2, 4)
    with pytest.raises(CaptureError, match=r"lora_[AB]"):
        run_step(OrthoLora(sample.model, TASKS), sample.model, [(sample, torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]]))])


def test_both_texts_of_each_row_may_have_a_call_of_their_own() -> None:
    model = models.peft(models.Stack([5, 6]), ["layers.0"])
    first, second = torch.randn(ROWS, 5), torch.randn(ROWS, 5)

    def losses(m: nn.Module) -> Tensor:
        return (1 - torch.cosine_similarity(m(first), m(second))) ** 2

    expected = oracle(models.copy.deepcopy(model), losses)
    ortho = OrthoLora(model, TASKS)
    train(ortho, model, losses)
    assert_same(ortho.task_gradients(), expected)


def contrastive(within: bool) -> tuple[nn.Module, RowLosses]:
    """Each row against all others, or against those of its own task."""
    model = models.peft(models.Stack([5, 6]), ["layers.0"])
    x = torch.randn(ROWS, 5)
    others = (IDS[:, None] != IDS[None, :]).float() * -1e9

    def losses(m: nn.Module) -> Tensor:
        states = m(x)
        alike = 0.1 * states @ states.T
        return -(alike + others if within else alike).log_softmax(1).diagonal()

    return model, losses


def test_a_contrastive_loss_is_refused() -> None:
    model, losses = contrastive(within=False)
    ortho = OrthoLora(model, TASKS)
    with pytest.raises(CaptureError, match="The loss mixes the rows"):
        train(ortho, model, losses)


def test_a_contrastive_loss_within_each_task_is_right() -> None:
    model, losses = contrastive(within=True)
    expected = oracle(models.copy.deepcopy(model), losses)
    ortho = OrthoLora(model, TASKS)
    train(ortho, model, losses)
    assert_same(ortho.task_gradients(), expected)


class Once(torch.autograd.Function):
    """A loss without second derivatives, as fused ones are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        return 2 * delta * ctx.saved_tensors[0]


def test_a_loss_without_second_derivatives_is_taken() -> None:
    model, x = models.peft(models.Stack([5, 6]), ["layers.0"]), torch.randn(ROWS, 5)
    ortho = OrthoLora(model, TASKS)
    with ortho.batch(IDS):
        Once.apply(model(x)).backward()
    ortho.resolve()


def test_a_second_call_that_comes_later_is_looked_at_in_the_next_batch() -> None:
    model, losses = labels_outside()
    ortho = OrthoLora(model, TASKS)
    train(ortho, model, lambda m: m(torch.randn(ROWS, 5)).sum(1))
    train(ortho, model, losses)
    with pytest.raises(CaptureError, match="The loss mixes the rows"):
        train(ortho, model, losses)


class Judge(nn.Module):
    """Returns its loss and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.head = models.Stack([5, 6]), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reader(x)).pow(2).sum()


def test_a_model_that_returns_nothing_but_its_loss() -> None:
    """Its inner modules tell, as far as they contain all LoRA layers."""
    x = torch.randn(ROWS, 3, 5)
    model = models.peft(Judge(), ["layers.0"])
    ortho = OrthoLora(model, TASKS)
    with ortho.batch(IDS):
        model(x).backward()
    assert len(ortho.task_gradients()) == 2
    model = models.peft(Judge(), ["layers.0", "head"])  # no module but the whole contains both
    with pytest.raises(CaptureError, match="cannot be tried out") as refused, OrthoLora(model, TASKS).batch(IDS):
        model(x).backward()
    assert "[]" in refused.value.found


def test_a_part_of_the_model_that_is_called_by_itself_is_refused() -> None:
    model = models.peft(models.Stack([5, 6, 4]), ["layers.0", "layers.1"])
    ortho = OrthoLora(model, TASKS)
    with pytest.raises(CaptureError, match="outside of the model's forward"), ortho.batch(IDS):
        model.base_model.model.layers[0](torch.randn(ROWS, 5)).sum().backward()


def test_a_backward_after_its_batch_is_tried_out_in_resolve() -> None:
    model, losses = positions()
    ortho = OrthoLora(model, TASKS)
    with ortho.batch(IDS):
        loss = losses(model).sum()
    loss.backward()
    with pytest.raises(CaptureError, match=r"position\.lora_[AB]"):
        ortho.resolve()


# ---- how often, and what it leaves behind ------------------------------------------------------------------


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each trial."""
    found: list[str] = []
    run = trial.run_twice

    def counted(*args: Any) -> Any:
        found.append("tried")
        return run(*args)

    monkeypatch.setattr(trial, "run_twice", counted)
    return found


def test_a_training_run_tries_out_a_handful_of_times(tries: list[str]) -> None:
    """Lengths that change in every batch are nothing new; one that is just the number of rows is, once."""
    model = models.llama(ROWS, 3).model
    ortho = OrthoLora(model, TASKS)
    for step in range(9):
        sample = models.Sample(model, {"input_ids": models._words(ROWS, 2 + step)}, torch.randn(ROWS, 2 + step, 8))
        run_step(ortho, model, [(sample, IDS)])
        ortho.resolve()
        model.zero_grad()
    assert len(tries) == 2


def test_it_is_tried_out_again_now_and_then(tries: list[str]) -> None:
    """What the data puts into place may have been there by chance."""
    model = models.peft(Sorted(), ["inner", "out"])
    x = torch.randn(ROWS, 3, 5)
    sorted_already, others = torch.tensor([4, 3, 2, 1]), torch.tensor([1, 2, 3, 4])
    ortho = OrthoLora(model, TASKS)
    for batch in range(1, 10):
        train(ortho, model, lambda m: (m(x, sorted_already) ** 2).sum((1, 2)))
        assert len(tries) == 1, batch
    with pytest.raises(CaptureError, match=r"inner\.lora_[AB]"):
        train(ortho, model, lambda m: (m(x, others) ** 2).sum((1, 2)))


def test_images_that_happen_to_fit_are_refused_all_the_same() -> None:
    model, losses = tower(1, 1, 1, 1)
    assert is_wrong_by(model, losses) < 1e-4
    with pytest.raises(CaptureError, match=r"vision\.lora_[AB].*" "(?s:.*)put into rows by a mask"):
        train(OrthoLora(model, TASKS), model, losses)


def test_task_pure_batches_and_a_switched_off_trial_are_never_run_twice(tries: list[str]) -> None:
    model, losses = tower(0, 0, 2, 2)
    train(OrthoLora(model, TASKS), model, losses, ids=1)
    assert tries == []
    other, losses = tower(0, 0, 2, 2)
    train(OrthoLora(other, TASKS, try_out=False), other, losses)
    assert tries == []


def test_zero_gradients_tell_nothing_and_the_next_batch_is_tried(tries: list[str]) -> None:
    model, losses = positions()
    ortho = OrthoLora(model, TASKS)
    train(ortho, model, lambda m: 0 * losses(m))
    assert tries == []
    with pytest.raises(CaptureError, match="position"):
        train(ortho, model, losses)


def test_b_is_zero_in_the_first_step() -> None:
    model, losses = positions()
    for name, parameter in models.lora_parameters(model).items():
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    with pytest.raises(CaptureError, match=r"position\.lora_A"):
        train(OrthoLora(model, TASKS), model, losses)


class Counting(nn.Module):
    """Keeps statistics of what it sees, and draws from three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(5, 6), nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        draws = random.random() + float(numpy.random.rand())
        return self.dropout(self.layer(x)) * (1 + draws)


def test_nothing_is_left_behind() -> None:
    """Weights, gradients, statistics and random states are to the bit what they are without the trial."""
    results = []
    for try_out in (False, True):
        torch.manual_seed(3)
        random.seed(3)
        numpy.random.seed(3)
        model = models.peft(Counting(), ["layer"], lora_dropout=0.2, modules_to_save=None)
        model.base_model.model.mean.requires_grad_(False)
        ortho = OrthoLora(model, TASKS, rule="sum", try_out=try_out)
        hooked: list[str] = []
        next(iter(models.lora_parameters(model).values())).register_post_accumulate_grad_hook(
            lambda _, hooked=hooked: hooked.append("accumulated")
        )
        for _ in range(3):
            for rows in (ROWS, 3):
                x = torch.randn(rows, rows, 5)
                with ortho.batch(IDS[:rows]):
                    (model(x) ** 2).mean().backward()
            captured = {name: t.clone() for name, t in ortho.task_gradients().items()}
            ortho.resolve()
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            model.zero_grad()
        state = (torch.get_rng_state(), random.random(), float(numpy.random.rand()), list(hooked))
        results.append((captured, gradients, dict(model.named_buffers()), state))
    (a, b, c, d), (e, f, g, h) = results
    for one, other in ((a, e), (b, f), (c, g)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(d[0], h[0])
    assert d[1:] == h[1:]


def test_a_copy_of_the_model_is_not_tried_out(tries: list[str]) -> None:
    """Not even one that is made and run within a batch."""
    sample = models.llama(ROWS, 3)
    ortho = OrthoLora(sample.model, TASKS)
    with ortho.batch(IDS):
        losses = models.token_losses(sample.model, sample)
        twin = models.copy.deepcopy(sample.model).eval()
        twin(**sample.inputs)
        losses.sum().backward()
    assert len(tries) == 1


def test_detach_takes_everything_away() -> None:
    model = models.llama(ROWS, 3).model
    backward = Tensor.backward
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    ortho = OrthoLora(model, TASKS)
    assert before != [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    ortho.detach()
    assert before == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert Tensor.backward is backward


def test_an_error_in_the_trial_names_the_way_out() -> None:
    class Once(models.Stack):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Once.calls += 1
            if Once.calls > 1:
                raise RuntimeError("a cache that was used up")
            return super().forward(x)

    model = models.peft(Once([5, 6]), ["layers.0"])
    with pytest.raises(CaptureError, match="a cache that was used up") as refused:
        train(OrthoLora(model, TASKS), model, lambda m: m(torch.randn(ROWS, 5)).pow(2).sum(1))
    assert "try_out=False" in refused.value.todo
