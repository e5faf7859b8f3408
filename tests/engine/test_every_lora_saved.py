"""What is special about saving and about optimizers for some kinds of LoRA; and kinds that are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging import version
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ortholora.engine import OrthoLora
from ortholora.errors import CaptureError

from . import _kinds as kinds
from . import _models as models
from ._asserts import FLOAT32, assert_capture_is_exact, assert_close, gradients, run_step, weights
from .test_every_lora import TASKS, outputs, parts_of

pytestmark = pytest.mark.skipif(
    version.parse(peft.__version__) < version.parse("0.21"), reason="docs/every-lora.md is about PEFT 0.21 and later"
)
ONE_PASS = kinds.Kind(kinds.llama)
TABLE = Path(__file__).parents[2] / "docs" / "every-lora.md"


def test_the_table_names_every_kind_with_its_class() -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| ") and line.count("|") == 5]
    said = {name.strip().replace("`", ""): capture.strip() for name, capture in rows}
    assert {name: kind.capture for name, kind in kinds.KINDS.items()}.items() <= said.items()
    assert set(said.values()) - {"class", "---"} == {kinds.ONE_PASS, kinds.TASK_PURE, "refused"}


# ---- saving -------------------------------------------------------------------------------------------


CHANGE_THE_BASE: dict[str, dict[str, Any]] = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, fast": {"init_lora_weights": "pissa_niter_2"},
    "PiSSA, rank_pattern": {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 3}},
    "OLoRA": {"init_lora_weights": "olora"},
    "OLoRA, rsLoRA": {"init_lora_weights": "olora", "use_rslora": True},
}


@pytest.mark.filterwarnings("ignore:.*changes the base weights:UserWarning")
@pytest.mark.parametrize("config", CHANGE_THE_BASE.values(), ids=CHANGE_THE_BASE.keys())
def test_an_initialisation_that_changes_the_base_is_saved_as_plain_lora(config: dict[str, Any], tmp_path: Path) -> None:
    """By `path_initial_model_for_weight_conversion`, while OrthoLora is attached; training can go on."""
    case = kinds.llama(draw=False, **config)
    model = case.sample.model
    assert not torch.equal(
        model.base_model.model.layers[0].mlp.down_proj.weight, case.bare.layers[0].mlp.down_proj.weight
    )
    model.save_pretrained(tmp_path / "initial")
    ortho = OrthoLora(model, TASKS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def step() -> None:
        run_step(ortho, model.train(), parts_of(case, ONE_PASS))
        ortho.resolve()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    trained = outputs(model, case.sample)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    saved = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert (saved["r"], saved["init_lora_weights"]) == (4, True)
    assert_close(outputs(PeftModel.from_pretrained(case.bare, tmp_path / "plain"), case.sample), trained, 1e-5)
    before = weights(model)
    step()  # the adapter that PEFT added for the conversion, and deleted, leaves the capture in place
    assert all(not torch.equal(before[name], value) for name, value in weights(model).items())


def test_an_initialisation_with_random_numbers_is_not_found_again(tmp_path: Path) -> None:
    """Why the conversion is the way to save: PEFT makes the changed base anew, here from other random numbers."""
    case = kinds.llama(draw=False, init_lora_weights="pissa_niter_1")
    case.sample.model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.bare, tmp_path)
    expected = outputs(case.sample.model, case.sample)
    assert float((outputs(loaded, case.sample) - expected).norm()) > 1e-3 * float(expected.norm())


class Heads(nn.Module):
    """A body that tasks share, and a head for each of two tasks; every row goes through its task's head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.heads = nn.ModuleDict({"first": nn.Linear(6, 4), "second": nn.Linear(6, 4)})

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        return torch.where(task[:, None, None] == 0, self.heads["first"](hidden), self.heads["second"](hidden))


def heads(names: list[str]) -> kinds.Case:
    inputs = {"x": torch.randn(6, 3, 5), "task": torch.tensor([0, 1, 1, 0, 0, 1])}
    return kinds.adapt(Heads(), inputs, torch.randn(6, 3, 4), target_modules=["body"], modules_to_save=names)


def test_heads_are_named_one_by_one(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="ModuleDict"):
        heads(["heads"])
    case = heads(["heads.first", "heads.second"])
    model = case.sample.model
    parts = [(case.sample, case.sample.inputs["task"])]
    assert_capture_is_exact(models.Sample(case.sample.fork(), case.sample.inputs, case.sample.target), parts, 2)
    before = weights(model)
    ortho = OrthoLora(model, ["first", "second"])
    assert (
        "plain joint gradient: base_model.model.heads.first.modules_to_save.default.weight and 3 more"
        in ortho.summary()
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    run_step(ortho, model, parts)
    ortho.resolve()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in weights(model).items())
    ortho.detach()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.bare, tmp_path)
    assert_close(outputs(loaded, case.sample), outputs(model, case.sample), 1e-5)


# ---- optimizers ---------------------------------------------------------------------------------------


def test_loraplus_steps_b_faster(tmp_path: Path) -> None:
    """Both rates are applied to what resolve wrote; rates do not enter the rule."""
    case = kinds.llama()
    model = case.sample.model
    ortho = OrthoLora(model, TASKS)
    optimizer = create_loraplus_optimizer(model, torch.optim.SGD, lr=0.1, loraplus_lr_ratio=4)
    run_step(ortho, model, parts_of(case, ONE_PASS))
    ortho.resolve()
    before, written = weights(model), gradients(model)
    optimizer.step()
    for name, value in weights(model).items():
        rate = 0.4 if "lora_B" in name else 0.1
        assert_close(before[name] - value, rate * written[name], 1e-3, name)
        assert bool(written[name].any())
    run_step(ortho, model.zero_grad() or model, parts_of(case, ONE_PASS))
    ortho.resolve()  # and it is not taken for an optimizer without matrices
    ortho.detach()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.bare, tmp_path)
    assert_close(outputs(loaded, case.sample), outputs(model, case.sample), 1e-5)


# ---- refused ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_adapters_over_one_memory_are_refused() -> None:
    def build(**config: Any) -> nn.Module:
        base = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **models._decoder()))
        return kinds.words(base, models.VOCAB, target_modules=["embed_tokens", "lm_head"], **config).sample.model

    message = r"lm_head\.lora_A\.default\.weight shares its memory with .*embed_tokens\.lora_embedding_B"
    with pytest.raises(CaptureError, match=message + r"(?s:.*)leave `ensure_weight_tying` out"):
        OrthoLora(build(ensure_weight_tying=True), TASKS)
    OrthoLora(build(), TASKS)  # the way out


def test_batch_norm_in_a_mixed_batch_is_refused() -> None:
    """Rows of one task reach the loss of another through the statistics of the batch."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.layer(x).transpose(1, 2)).transpose(1, 2)

    case = kinds.adapt(Normed(), {"x": torch.randn(6, 3, 5)}, torch.randn(6, 3, 4), target_modules=["layer"])
    ids = torch.tensor([0, 1, 0, 1, 1, 0])
    ortho = OrthoLora(case.sample.fork(), TASKS)
    with (
        pytest.raises(CaptureError, match=r"model\.norm mixes the rows(?s:.*)one micro-batch per task"),
        ortho.batch(ids),
    ):
        pass
    pure = [(case.sample.rows(slice(k, k + 3)), task) for k, task in ((0, 1), (3, 0))]
    assert_capture_is_exact(models.Sample(case.sample.fork(), case.sample.inputs, case.sample.target), pure, 2)
    case.sample.model.base_model.model.norm.eval()
    assert_capture_is_exact(case.sample, [(case.sample, ids)], 2, FLOAT32)


def test_a_method_that_is_no_lora_is_refused() -> None:
    from peft import IA3Config, get_peft_model

    base = models.Stack([5, 6])
    model = get_peft_model(base, IA3Config(target_modules=["layers.0"], feedforward_modules=[]))
    with pytest.raises(CaptureError, match=re.escape("no trainable LoRA matrix")):
        OrthoLora(model, TASKS)
