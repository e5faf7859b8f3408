"""What a model may do with the output of a fused layer, and a fused layer on no rows: plain PEFT trains there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DebertaConfig, DebertaModel, LongformerConfig, LongformerModel

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _models as models
from ._asserts import assert_capture_is_exact, assert_same, oracle, run_step
from ._one_layer import fused_layers

IDS = torch.tensor([0, 1, 1, 0])


def through_slice(out: Tensor) -> Tensor:
    out[:, 1:] *= 2.0
    return out


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": nn.ReLU(inplace=True),
    "division": lambda out: out.div_(3.0),
    "augmented assignment": lambda out: out.__iadd__(1.0),
    "a slice": through_slice,
    "a view": lambda out: out.view(-1).mul_(0.5).view(out.shape),
}


class Changed(nn.Module):
    """A layer whose output is changed in place."""

    def __init__(self, change: Callable[[Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        self.first, self.second, self.change = nn.Linear(5, 6, bias=bias), nn.Linear(6, 4), change

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.change(self.first(x)))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("how", IN_PLACE)
def test_the_output_may_be_changed_in_place(how: str, bias: bool) -> None:
    model = models.peft(Changed(IN_PLACE[how], bias), ["first", "second"])
    sample = models.Sample(model, {"x": torch.randn(4, 3, 5)}, torch.randn(4, 3, 4))
    assert_capture_is_exact(sample, [(sample, IDS)], 2)


def deberta() -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    apart = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 16}
    return DebertaModel(DebertaConfig(vocab_size=models.VOCAB, **apart, **sizes, **off))


def longformer() -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attention_window": 4}
    config = LongformerConfig(vocab_size=models.VOCAB, max_position_embeddings=16, pad_token_id=0, **sizes, **off)
    return LongformerModel(config, add_pooling_layer=False)


@pytest.mark.parametrize(
    ("build", "targets"),
    [(deberta, ["in_proj", "pos_proj", "pos_q_proj", "dense"]), (longformer, ["query", "value"])],
    ids=["deberta", "longformer"],
)
def test_models_that_do_it_train_like_plain_peft(build: Any, targets: list[str]) -> None:
    model = models.peft(build(), targets)
    inputs = {"input_ids": torch.randint(3, models.VOCAB, (4, 8)), "attention_mask": torch.ones(4, 8).long()}
    sample = models.Sample(model, inputs, torch.randn(4, 8, 8))
    original = sample.fork()
    ortho = OrthoLora(model, ["a", "b"], rule="sum")
    assert fused_layers(model) > 0
    for task in (0, 1):
        run_step(ortho, model, [(sample, task)])
    expected = oracle(original, [(sample, 0), (sample, 1)], 2)
    assert_same(ortho.task_gradients(), expected)
    ortho.resolve()


def test_the_output_is_no_view() -> None:
    """A view made inside an autograd Function must not be changed in place."""
    sample = models.stack(4, 3, [5, 6])
    ortho = OrthoLora(sample.model, ["a", "b"])
    with ortho.batch(IDS):
        assert not sample.model.base_model.model.layers[0](sample.inputs["x"])._is_view()


@pytest.mark.parametrize("change", ["half precision", "dropout"])
def test_an_input_that_is_changed_later_is_an_error_with_a_way_out(change: str) -> None:
    """PEFT keeps a copy there (in float32, or dropped out); the fused path keeps the input itself."""

    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            out = self.layer(x)
            x.add_(1)
            return out + x

    base = Overwrites().bfloat16() if change == "half precision" else Overwrites()
    model = models.peft(base, ["layer"], lora_dropout=0.5 if change == "dropout" else 0.0)
    x = torch.randn(4, 5, dtype=torch.bfloat16 if change == "half precision" else torch.float32)
    for fused in (True, False):
        ortho = OrthoLora(model, ["a", "b"], fused=fused)
        with ortho.batch(IDS):
            loss = model(x).float().square().sum()
            if fused:
                message = r"layer\.lora_A\.default\.weight(?s:.*)changed in place(?s:.*)fused=False"
                with pytest.raises(CaptureError, match=message):
                    loss.backward()
            else:
                loss.backward()
                assert len(ortho.task_gradients()) == 2
        ortho.detach()


class Experts(nn.Module):
    """Tokens go to the expert that is told; an expert without tokens runs on no rows, as in OLMoE."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        flat, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        for i, layer in enumerate(self.experts):
            rows = (expert.flatten() == i).nonzero().squeeze(1)
            out = out.index_add(0, rows, layer(flat[rows]))
        return out.view(x.shape)


@pytest.mark.parametrize("idle", [True, False], ids=["an idle expert", "all work"])
def test_experts_without_rows(idle: bool) -> None:
    model = models.peft(Experts(), ["experts.0", "experts.1", "experts.2"])
    expert = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0]]) + (torch.eye(4, 3).long() if not idle else 0)
    sample = models.Sample(model, {"x": torch.randn(4, 3, 5), "expert": expert}, torch.randn(4, 3, 5))
    assert_capture_is_exact(sample, [(sample.rows(slice(0, 2)), 0), (sample.rows(slice(2, 4)), 1)], 2)


@pytest.mark.parametrize("ids", [IDS, torch.tensor([0, 0, 1, 1])], ids=["scattered", "runs"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
def test_no_rows_in_a_mixed_batch_add_nothing(ids: Tensor, fused: bool) -> None:
    sample = models.stack(4, 3, [5, 6])
    ortho = OrthoLora(sample.model, ["a", "b"], fused=fused)
    with ortho.batch(ids):
        sample.model(sample.inputs["x"][:0]).sum().backward()
    assert all(not bool(t.any()) for t in ortho.task_gradients().values())
    assert len(ortho.task_gradients()) == 2
