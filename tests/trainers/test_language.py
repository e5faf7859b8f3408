"""Language-model tasks in the trainer: whose loss it is, that no cut changes it, resume, and what is saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import language_workspaces
from ortholora.models.language import LanguageModel
from ortholora.runs.progress import Silent, Stopped
from ortholora.runs.run import Run
from ortholora.runs.train import train_run
from ortholora.text.completion import Completion
from ortholora.trainers.trainer import OrthoTrainer
from tiny_language import TASKS
from workspaces import JOINT, ORTHO, SUM, weights

LAYOUTS: list[dict[str, Any]] = [
    {"layout": "mixed"},
    {"layout": "mixed", "micro_batches": 4},
    {"layout": "by-length", "micro_batches": 3},
    {"layout": "by-task"},
    {"layout": "padding-free"},
    {"layout": "padding-free", "micro_batches": 3},
]


def oracle(trainer: OrthoTrainer) -> dict[str, Tensor]:
    """T separate gradients of the tasks' token means over the first step, row by row through the bare forward."""
    model = trainer._bare_model()
    assert isinstance(model, LanguageModel)
    ortho = trainer.ortho
    assert ortho is not None
    parameters = {matrix.name: matrix.parameter for matrix in ortho.matrices}
    rows = [row for batch in next(iter(trainer.get_train_dataloader().batch_sampler)) for row in batch.rows]
    losses = []
    for task in range(len(trainer.tasks)):
        split = trainer.tasks[task].train
        total, tokens = torch.zeros(()), 0
        for index in (row for of, row in rows if of == task):
            ids, labels = (torch.tensor(split.row(index)[key]) for key in ("input_ids", "labels"))
            logits = model.decoder(input_ids=ids[None]).logits[0]
            total = total + F.cross_entropy(logits[:-1], labels[1:], reduction="sum")
            tokens += int((labels[1:] != -100).sum())
        losses.append(total / tokens)
    gradients = [torch.autograd.grad(loss, list(parameters.values()), retain_graph=True) for loss in losses]
    return {name: torch.stack([g[i] for g in gradients]) for i, name in enumerate(parameters)}


def first_step(trainer: OrthoTrainer) -> dict[str, Tensor]:
    """The task gradients of the first step, as captured."""
    batch = next(iter(trainer.get_train_dataloader()))
    ortho, model = trainer.ortho, trainer.model
    assert ortho is not None
    assert model is not None
    for part in batch["micro_batches"]:
        with ortho.batch(trainer.task_ids_of(part)):
            trainer.compute_loss(model, part).backward()
    return {name: gradient.clone() for name, gradient in ortho.task_gradients().items()}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
@pytest.mark.parametrize("mixing", LAYOUTS, ids=str)
def test_a_tasks_gradient_is_that_of_its_own_token_mean(tmp_path: Path, mixing: dict[str, Any], fused: bool) -> None:
    trainer = language_workspaces.trainer(tmp_path, mixing=mixing, capture={"fused": fused})
    scramble(trainer)
    found = first_step(trainer)
    assert trainer.ortho is not None
    trainer.ortho.detach()  # the oracle runs the bare model
    expected = oracle(trainer)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert float(gradient.norm()) > 0, name
        assert float((found[name].view_as(gradient) - gradient).norm() / gradient.norm()) < 1e-5, name


def scramble(trainer: OrthoTrainer) -> None:
    """B = 0 would hide the gradients of every A."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainer._bare_model().named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)


def trained(out: Path, *args: Any, **sections: Any) -> dict[str, Tensor]:
    trainer = language_workspaces.trainer(out, *args, **sections)
    trainer.train()
    return weights(trainer)


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_rule_sum_is_plain_joint_training(tmp_path: Path) -> None:
    joint, summed = trained(tmp_path / "joint", JOINT), trained(tmp_path / "sum", SUM)
    ortho = trained(tmp_path / "ortho", ORTHO)
    assert difference(joint, summed) < 1e-5
    assert difference(joint, ortho) > 1e-4  # there is something to project


@pytest.mark.parametrize("rule", [JOINT, ORTHO], ids=["joint", "ortho"])
def test_the_cut_changes_nothing(tmp_path: Path, rule: Any) -> None:
    whole = trained(tmp_path / "0", rule, mixing=LAYOUTS[0], training={"learning_rate": 1e-3})
    for i, mixing in enumerate(LAYOUTS[1:], start=1):
        cut = trained(tmp_path / str(i), rule, mixing=mixing, training={"learning_rate": 1e-3})
        # AdamW turns rounding of a gradient near zero into a whole step; on average nothing drifts.
        assert difference(whole, cut) < 3e-3, mixing
        drift = np.mean([float((whole[n] - cut[n]).abs().mean()) for n in whole])
        assert drift < 2e-6, mixing


def test_accumulation_outside_of_the_step(tmp_path: Path) -> None:
    whole = language_workspaces.trainer(tmp_path / "1", mixing={"layout": "mixed"}, training={"learning_rate": 1e-3})
    cut = language_workspaces.trainer(tmp_path / "4", mixing={"layout": "mixed"}, training={"learning_rate": 1e-3})
    cut.args.gradient_accumulation_steps = cut.accelerator.gradient_accumulation_steps = 4
    whole.train()
    cut.train()
    drift = np.mean(
        [float((a - b).abs().mean()) for a, b in zip(*(weights(t).values() for t in (whole, cut)), strict=True)]
    )
    assert drift < 2e-6


def test_weights_are_the_steps_target_tokens(tmp_path: Path) -> None:
    trainer = language_workspaces.trainer(tmp_path, mixing={"layout": "mixed", "micro_batches": 4})
    batches = next(iter(trainer.get_train_dataloader()))["micro_batches"]
    ids = [torch.tensor(batch["task_ids"]) for batch in batches]
    tokens = [(batch["inputs"]["labels"] != -100).sum(1) for batch in batches]
    expected = torch.zeros(4).index_add(0, torch.cat(ids), torch.cat(tokens).float())
    assert len(batches) == 4
    assert len(set(expected.tolist())) > 1
    for batch in batches:
        assert torch.equal(batch["weights"], expected)


def test_packed_rows_do_not_see_each_other(tmp_path: Path) -> None:
    """Another document in the row changes nothing of a row's loss, whichever task it belongs to."""
    trainer = language_workspaces.trainer(tmp_path, mixing={"layout": "padding-free"})
    features = [trainer.tasks[task].train.row(row) for task, row in ((0, 0), (3, 1), (1, 2), (3, 4))]
    model = trainer._bare_model().eval()
    with torch.no_grad():
        together = model(trainer.collator.pack(features))
        apart = torch.cat([model(trainer.collator.pack([feature])) for feature in features])
        padded = model(trainer.collator.pad(features))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together, padded, rtol=1e-5, atol=1e-5)


class StopAfter(Silent):
    """Asks to stop after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, done: int) -> None:
        self.stop_requested = done >= self.steps


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    space = language_workspaces.workspace(lora={"dropout": 0.1})
    whole = train_run(Run(ORTHO, TASKS, 0, tmp_path / "whole"), space)
    with pytest.raises(Stopped):
        train_run(Run(ORTHO, TASKS, 0, tmp_path / "cut"), space, StopAfter(3))
    cut = train_run(Run(ORTHO, TASKS, 0, tmp_path / "cut"), space)
    assert (tmp_path / "whole/adapter_model.safetensors").read_bytes() == (
        tmp_path / "cut/adapter_model.safetensors"
    ).read_bytes()
    assert whole.metrics == cut.metrics


SCRIPT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, run = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
ids = tokenizer("sky in day colour :", return_tensors="pt", return_token_type_ids=False)
for merge in (False, True):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run)
    model = model.merge_and_unload() if merge else model
    tokens = model.eval().generate(**ids, do_sample=False, max_new_tokens=4)
    print(tokenizer.decode(tokens[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
assert not any(name.startswith("ortholora") for name in sys.modules)
"""


def test_plain_peft_generates_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    import ortholora

    space = language_workspaces.workspace(training={"steps": 80, "save_every": 0})
    train_run(Run(ORTHO, TASKS, 0, tmp_path), space)
    # Its tokenizer has no part in this: `load` finds the backbone by its folder.
    predictor = ortholora.load(tmp_path, "cpu")
    spec = predictor.model.specs[1]
    own = predictor.model.asking(predictor.reading()).write(spec, [Completion.asking("sky in day colour :")])[0]
    base = language_workspaces.folder() / "llama"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(base), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == [own, own]
    assert own == "blue"
    assert predictor.predict("colour", "sky in day colour :")[0].label == "blue"


def test_evaluation_heeds_the_token_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = language_workspaces.trainer(tmp_path, mixing={"max_tokens": 96})
    real, sizes = LanguageModel.logits, []

    def watched(self: LanguageModel, inputs: Any) -> Tensor:
        sizes.append(inputs["input_ids"].numel())
        return real(self, inputs)

    monkeypatch.setattr(LanguageModel, "logits", watched)
    made.evaluate()
    assert 48 < max(sizes) <= 96
