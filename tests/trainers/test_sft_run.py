"""`OrthoSFTTrainer`: logs, evaluation, checkpoints, several processes, and what it refuses."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("trl")

import many_sft
from peft import PeftModel
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import language
import ortholora
from forked import in_ranks
from language import ROWS, TASKS, WHOLE, adapted, assert_close, lora_weights, rows, settings, tokenizer
from language import sft_trainer as trainer
from ortholora.errors import CaptureError, UserError
from ortholora.trainers.task_losses import TaskLosses

# transformers 5 renamed the argument; both names work.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")

# ---- logs, evaluation, checkpoints -----------------------------------------------------------------------------


def test_logs_hold_each_tasks_loss_and_the_conflicts(tmp_path: Path) -> None:
    changes = {"logging_strategy": "steps", "logging_steps": 1, "gradient_accumulation_steps": 3}
    made = trainer(tmp_path, per_device_train_batch_size=4, max_steps=2, **changes)
    made.train()
    for entry in made.state.log_history[:2]:
        assert math.isclose(entry["loss"], sum(entry[f"loss/{task}"] for task in TASKS), rel_tol=1e-5)
        assert {"conflict/removed", "conflict/copy-count", "entropy", "mean_token_accuracy"} <= entry.keys()
    token_mean = trainer(tmp_path, per_device_train_batch_size=4, max_steps=2, loss="token-mean", **changes)
    token_mean.train()
    first, expected = token_mean.state.log_history[0], made.state.log_history[0]
    assert {t: first[f"loss/{t}"] for t in TASKS} == pytest.approx({t: expected[f"loss/{t}"] for t in TASKS}, rel=1e-5)


def test_an_interrupted_step_is_forgotten(tmp_path: Path) -> None:
    made = trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=1)
    real, left = made.compute_loss, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        left.append(len(made.ortho.task_gradients()))
        if len(left) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    made.compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert left[1] > 0  # of the first micro-batch
    made.train()
    assert left[2] == 0
    assert made.task_losses._own_counts.tolist() == made._targets_in_step.tolist()


def test_a_large_sum_does_not_swallow_the_loss_of_a_token() -> None:
    losses = TaskLosses(["a", "b"], torch.device("cpu"))
    losses.add_losses(torch.tensor([2.0**24]), torch.tensor([1]))
    losses.add_losses(torch.full((1, 1000), 0.5), torch.ones(1, 1000, dtype=torch.long))
    losses.add_counts(torch.tensor([0, 1001]))
    assert losses.take() == {"b": (2.0**24 + 500) / 1001}


@pytest.mark.parametrize("changes", [{}, {"packing": True}], ids=str)
def test_an_evaluation_records_nothing_and_is_trls(changes: dict[str, Any], tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_dataset=rows(8, seed=5), **changes)
    found = made.evaluate()
    on_train = made.evaluate(made.train_dataset)  # its rows carry task ids
    assert made.ortho.task_gradients() == {}
    assert not made.ortho._present.any()
    assert made.task_losses.take() == {}
    stock = SFTTrainer(
        adapted(attention="sdpa"),
        SFTConfig(**settings(tmp_path, **changes)),
        train_dataset=rows(ROWS),
        eval_dataset=rows(8, seed=5),
        processing_class=tokenizer(),
    )
    assert found["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-6)
    assert on_train["eval_loss"] == pytest.approx(stock.evaluate(stock.train_dataset)["eval_loss"], rel=1e-6)


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Weights, visit orders and logs; the checkpoint lies between two logs."""
    changes = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_strategy": "steps",
        "logging_steps": 2,
        "per_device_train_batch_size": 8,
    }
    whole = trainer(tmp_path / "whole", rows(24), **changes)
    whole.train()
    trainer(tmp_path / "cut", rows(24), callbacks=[Stop(3)], **changes).train()
    resumed = trainer(tmp_path / "cut", rows(24), **changes)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert_close(lora_weights(resumed.model), lora_weights(whole.model), relative=1e-6)
    states = [made.ortho.state_dict() for made in (resumed, whole)]
    assert states[0]["step"] == states[1]["step"] == 6
    assert torch.equal(states[0]["generator"], states[1]["generator"])
    assert resumed.conflicts.report()["steps"] == 6
    own = {f"loss/{task}" for task in TASKS} | {"conflict/removed"}  # the Trainer forgets its own running loss
    for found, expected in zip(resumed.state.log_history[:3], whole.state.log_history[:3], strict=True):
        assert {k: found[k] for k in own} == pytest.approx({k: expected[k] for k in own}, rel=1e-5)


def test_a_checkpoint_of_another_trainer_is_resumed_with_a_warning(tmp_path: Path) -> None:
    changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path, callbacks=[Stop(2)], **changes)
    made.train()
    state = tmp_path / "checkpoint-2" / "ortholora_state.pt"
    content = state.read_bytes()
    for saved, problem in (
        ({"ortho": None}, pytest.warns(UserWarning, match="saved by a training without a rule")),
        ({"task_losses": {"tasks": ["x"]}}, pytest.raises(ValueError, match="The state should be for tasks")),
    ):
        torch.save(torch.load(state, weights_only=False) | saved, state)
        with problem:
            trainer(tmp_path, **changes).train(resume_from_checkpoint=str(state.parent))
        state.write_bytes(content)
    state.unlink()
    with pytest.warns(UserWarning, match="was not saved by an Ortho-LoRA trainer"):
        trainer(tmp_path, **changes).train(resume_from_checkpoint=str(state.parent))
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be resumed"):
        trainer(tmp_path, **changes).train(resume_from_checkpoint=str(state.parent))


def test_the_saved_adapter_is_an_ordinary_one(tmp_path: Path) -> None:
    made = trainer(tmp_path, save_strategy="steps", save_steps=3)
    before = lora_weights(adapted())
    frozen = {n: p.detach().clone() for n, p in adapted().named_parameters() if not p.requires_grad}
    made.train()
    made.save_model()
    after = {n: p.detach() for n, p in made.model.named_parameters()}
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())
    assert all(torch.equal(after[name], weight) for name, weight in frozen.items())
    ids = torch.arange(5, 15)[None]
    expected = made.model.eval()(input_ids=ids).logits
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        loaded = PeftModel.from_pretrained(language.base("sdpa"), str(folder)).eval()
        assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-6)


# ---- what is refused -------------------------------------------------------------------------------------------


def reading_everything(model: nn.Module) -> nn.Module:
    """A backbone that never hears of position_ids, so that its attention does not stop at a text's end."""
    inner = model.get_base_model().model
    forward = inner.forward
    inner.forward = lambda input_ids, **kwargs: forward(input_ids, use_cache=False)
    return model


@pytest.mark.filterwarnings("ignore:.label_smoothing_factor. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_column": "source"}, "does not say which task"),
        ({"tasks": ["copy", "count"]}, "not in `tasks`"),
        ({"task_weights": {"cpoy": 2.0}}, "task_weights cannot be used"),
        ({"task_weights": {"copy": 2.0}, "loss": "token-mean"}, "task_weights cannot be used"),
        ({"loss": "mean"}, "loss should be"),
        ({"packing": True, "packing_strategy": "wrapped"}, "read each other"),
        ({"label_smoothing_factor": 0.1}, "loss='token-mean'"),
    ],
    ids=str,
)
def test_what_would_be_wrong_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes)


def test_what_owns_the_gradients_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has a loss that no task owns; and shards that Accelerate would leave out on a CPU."""
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(UserError, match=r"OrthoSFTTrainer cannot train so(?s:.*)leaves out on cpu"):
            trainer(tmp_path)
    arguments = SFTConfig(**settings(tmp_path))
    object.__setattr__(arguments, "deepspeed", {"train_batch_size": 1})  # SFTConfig itself asks for the package
    with pytest.raises(UserError, match=r"OrthoSFTTrainer cannot train so(?s:.*)DeepSpeed"):
        ortholora.OrthoSFTTrainer(adapted(), arguments, train_dataset=rows(ROWS), processing_class=tokenizer())
    made = trainer(tmp_path)
    made._check_settings()
    made.aux_loss_enabled = True  # as TRL sets it for a mixture of experts
    with pytest.raises(UserError, match=r"auxiliary loss(?s:.*)router_aux_loss_coef=0.0"):
        made._check_settings()
    made.aux_loss_enabled, made.compute_loss_func = False, print
    with pytest.raises(UserError, match=r"compute_loss_func(?s:.*)loss='token-mean'"):
        made._check_settings()
    made.compute_loss_func, made.accelerator = None, SimpleNamespace(parallelism_config=object())
    with pytest.raises(UserError, match="parallelism_config"):
        made._check_settings()


def test_texts_that_read_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lets the texts of a padding-free row read each other"):
        trainer(tmp_path, model=reading_everything(adapted()), packing=True)
    trainer(tmp_path, model=reading_everything(adapted()), per_device_train_batch_size=1)  # one text in a row


def test_a_model_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no trainable LoRA"):
        trainer(tmp_path, model=language.base())


def test_trl_is_needed_where_it_is_used_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "ortholora.trl")
    with pytest.raises(UserError, match=r'pip install "ortholora\[trl\]"'):
        importlib.import_module("ortholora.trl")
    sources = Path(ortholora.__file__).parent
    using = {
        str(path.relative_to(sources))
        for path in sources.rglob("*.py")
        if re.search(
            r"^\s*(from|import) (trl|ortholora\.trainers\.sft|ortholora\.trl)\b", path.read_text(), re.MULTILINE
        )
    }
    door = (sources / "__init__.py").read_text().partition("if TYPE_CHECKING:")
    assert "ortholora.trl import" not in door[0]  # a type checker's affair
    assert using - {"__init__.py"} == {"trl.py", "trainers/sft.py"}


# ---- several processes -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Law 4: targets are counted, and losses logged, over all ranks, whatever tasks a rank has."""
    changes = {"optim": "sgd", "learning_rate": 0.05, "logging_strategy": "steps", "logging_steps": 1}
    made = trainer(tmp_path, **{**WHOLE, **changes})
    made.train()
    cut = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    in_ranks(2, many_sft.replicated, tmp_path, {**changes, **cut})
    found = torch.load(tmp_path / "result.pt", weights_only=False)
    start, expected = lora_weights(adapted()), lora_weights(made.model)
    assert_close(
        {name: weight - start[name] for name, weight in found["weights"].items()},
        {name: weight - start[name] for name, weight in expected.items()},
        relative=1e-4,
    )
    keys = ["loss", "conflict/removed", *(f"loss/{task}" for task in TASKS)]
    for logged, entry in zip(found["logs"][:3], made.state.log_history[:3], strict=True):
        assert {k: logged[k] for k in keys} == pytest.approx({k: entry[k] for k in keys}, rel=1e-4)
