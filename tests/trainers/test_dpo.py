"""`ResolveMixin` on TRL's `DPOTrainer`, as docs/trainers.md shows it, against T separate backward passes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("trl")

from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

import language
from language import ROWS, TASKS, adapted, assert_close, lora_weights, named, pairs, recorded, settings, tokenizer

# transformers 5 renamed the argument; both names work.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")

BETA = 0.5


def documented() -> type:
    """The class that docs/trainers.md shows."""
    page = Path(__file__).parent.parent.parent / "docs" / "trainers.md"
    code = re.search(r"```python\n(import numpy.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict[str, Any] = {"__name__": "documented"}
    exec(code, names)
    return names["OrthoDPOTrainer"]


OrthoDPOTrainer = documented()


def trainer(folder: Path, reference: str, made_of: type = OrthoDPOTrainer, **changes: Any) -> Any:
    """The reference is the bare model (a fresh adapter), or a copy of the adapter (an adapter that was there)."""
    own = {key: changes.pop(key) for key in ("rule",) if key in changes}
    if reference == "disabled":
        model, own["peft_config"] = language.base("sdpa"), language.lora(init_lora_weights=False)
    else:
        model = adapted(attention="sdpa")
    arguments = settings(folder, beta=BETA, **changes)
    return made_of(model, args=DPOConfig(**arguments), train_dataset=pairs(ROWS), processing_class=tokenizer(), **own)


def oracle(model: nn.Module, reference: str) -> dict[str, Tensor]:
    """Each text alone and unpadded; every task's part of the mean over all pairs."""
    frozen = language.base("sdpa") if reference == "disabled" else adapted()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = dict.fromkeys(TASKS, torch.zeros(()))
    for row in pairs(ROWS):
        margins = []
        for key in ("chosen", "rejected"):
            prompt, completion = (tokenizer()(text)["input_ids"] for text in (row["prompt"], row[key] + "<eos>"))
            policy = log_probability(model, prompt, completion)
            with torch.no_grad():
                fixed = log_probability(frozen, prompt, completion)
            margins.append(policy - fixed)
        losses[row["task"]] = losses[row["task"]] - F.logsigmoid(BETA * (margins[0] - margins[1])) / ROWS
    found = [torch.autograd.grad(losses[t], list(parameters.values()), retain_graph=True) for t in TASKS]
    return {name: torch.stack([g[i] for g in found]) for i, name in enumerate(parameters)}


def log_probability(model: nn.Module, prompt: list[int], completion: list[int]) -> Tensor:
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, ids[0, 1:, None])[-len(completion) :].sum()


@pytest.mark.parametrize("reference", ["disabled", "copy"])
@pytest.mark.parametrize(
    "cut",
    [
        {"per_device_train_batch_size": ROWS},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": ROWS, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_task_gradients_and_a_reference_that_leaves_no_trace(
    cut: dict[str, Any], reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, reference, max_steps=1, **cut)
    plain = adapted()
    plain.load_state_dict(lora_weights(made.model), strict=False)
    expected = oracle(plain, reference)
    forwards = watch_reference(made, monkeypatch)
    taken = recorded(made)
    made.train()
    assert forwards == [False] * cut.get("gradient_accumulation_steps", 1)
    assert_close(named(taken[0], plain), expected)


def watch_reference(made: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each reference forward: whether any LoRA matrix was noted as run or written to in it."""
    found: list[bool] = []
    use_adapter = dpo_trainer.use_adapter

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Iterator[None]:
        groups = made.ortho._groups
        before = [(list(group.ran), list(group.touched)) for group in groups]
        for group in groups:
            group.ran, group.touched = [False] * len(group.ran), [False] * len(group.touched)
        with use_adapter(*args, **kwargs):
            yield
        found.append(any(any(group.ran) or any(group.touched) for group in groups))
        for group, (ran, touched) in zip(groups, before, strict=True):
            group.ran, group.touched = ran, touched

    monkeypatch.setattr(dpo_trainer, "use_adapter", watched)
    return found


def test_rule_sum_is_trls_own_trainer(tmp_path: Path) -> None:
    weights = []
    for kind in (OrthoDPOTrainer, DPOTrainer):
        own = {"rule": "sum"} if kind is OrthoDPOTrainer else {}
        made = trainer(tmp_path, "copy", kind, gradient_accumulation_steps=2, max_steps=4, **own)
        made.train()
        weights.append(lora_weights(made.model))
    assert_close(*weights, relative=1e-6)


def test_checkpoints_carry_the_visit_orders(tmp_path: Path) -> None:
    """`ResolveMixin` saves and restores by itself."""
    made = trainer(tmp_path, "disabled", max_steps=4, save_strategy="steps", save_steps=2)
    made.train()
    resumed = trainer(tmp_path, "disabled", max_steps=4, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.ortho.state_dict()["step"] == 4
    assert torch.equal(resumed.ortho.state_dict()["generator"], made.ortho.state_dict()["generator"])
    assert_close(lora_weights(resumed.model), lora_weights(made.model), relative=1e-6)


def test_logs_and_checkpoints_carry_the_conflicts(tmp_path: Path) -> None:
    """Without a line of code in the trainer; the checkpoint lies between two logs."""
    changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "logging_strategy": "steps"}
    made = trainer(tmp_path, "disabled", logging_steps=2, **changes)
    made.train()
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    keys = {"conflict/removed", "conflict/negative_share", "conflict/copy-count", "rewards/margins"}
    assert [keys <= entry.keys() for entry in logs] == [True, True]
    assert made.conflicts.report()["steps"] == 4
    resumed = trainer(tmp_path, "disabled", logging_steps=2, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    last = next(entry for entry in reversed(resumed.state.log_history) if "loss" in entry)
    for key in last.keys() & {key for key in logs[1] if key.startswith("conflict/")}:
        assert last[key] == pytest.approx(logs[1][key], rel=1e-5, abs=1e-7), key
    assert resumed.conflicts.report()["steps"] == 4


def test_a_checkpoint_without_the_conflicts_is_resumed(tmp_path: Path) -> None:
    """So the mixin saved it before it kept them."""
    changes = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path, "disabled", **changes)
    made.train()
    state = tmp_path / "checkpoint-2" / "ortholora_state.pt"
    torch.save({"ortho": torch.load(state, weights_only=False)["ortho"]}, state)
    resumed = trainer(tmp_path, "disabled", **changes)
    resumed.train(resume_from_checkpoint=str(state.parent))
    assert_close(lora_weights(resumed.model), lora_weights(made.model), relative=1e-6)
    assert resumed.conflicts.report()["steps"] == 1
