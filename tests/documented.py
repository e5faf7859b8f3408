"""What the snippets of each page are given, made of tiny random models: no network."""

from __future__ import annotations

import functools
import gc
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import language
from language import TASKS

ROWS = 6


def batch(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 30, (ROWS, 8), generator=draw)
    return {"input_ids": ids, "labels": ids, "task_ids": torch.tensor([0, 1, 0, 1, 1, 0])}


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def losses_of(model: nn.Module, part: Part) -> Tensor:
    logits = model(part.rows).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), part.rows[:, 1:], reduction="none").mean(1)


class Part:
    """A micro-batch."""

    def __init__(self, seed: int) -> None:
        self.rows, self.ids = batch(seed)["input_ids"], batch(seed)["task_ids"]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


def plain(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """README.md: two tasks, one micro-batch a step."""
    model = language.adapted()
    loader = [batch(seed) for seed in range(2)]
    return {"peft_model": model, "loader": loader, "loss_of": loss_of, "optimizer": optimizer_of(model)}


def for_rules(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """docs/rules.md: steps of two micro-batches."""
    return {
        "model": language.adapted(),
        "tasks": TASKS[:2],
        "device": torch.device("cpu"),
        "micro_batches": [Part(0), Part(1)],
        "losses_of": losses_of,
        "rows_in_step": 2 * ROWS,
    }


def for_processes(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """docs/scaling.md: one process in a group, which the page's last block leaves."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    import ortholora

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", f"file://{folder}/init", rank=0, world_size=1)
    model = language.adapted()
    return {
        "model": model,
        "tasks": TASKS[:2],
        "loader": [[batch(0), batch(1)], [batch(2)]],
        "loss_of": loss_of,
        "optimizer": optimizer_of(model),
        "OrthoLora": ortholora.OrthoLora,
        "DistributedDataParallel": DistributedDataParallel,
        "fully_shard": fully_shard,
        "nullcontext": nullcontext,
        "torch": torch,
        "gc": gc,
        "deepspeed": SimpleNamespace(initialize=lambda **given: [PlainEngine(**given)]),
        "config": {},
    }


class PlainEngine:
    """What docs/scaling.md calls of DeepSpeed's engine, without DeepSpeed: one process, and gradients in `.grad`."""

    def __init__(self, model: Any, optimizer: Any, config: dict[str, Any]) -> None:
        self.model, self.optimizer, self.boundary = model, optimizer, False

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.model(*inputs, **named)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundary = is_boundary

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas
        loss.backward()

    def step(self) -> None:
        assert self.boundary
        self.optimizer.step()
        self.optimizer.zero_grad()


def for_trainers(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """docs/trainers.md: a model that finds its tokenizer; TRL's settings for a CPU, and for one step."""
    trl = pytest.importorskip("trl")
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    if not (folder / "base").is_dir():
        from tiny import save_quietly

        save_quietly(language.base(), folder / "base")
        language.tokenizer().save_pretrained(folder / "base")
        small = {"max_steps": 1, "max_length": 32, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
        patch.setattr(trl, "SFTConfig", functools.partial(trl.SFTConfig, use_cpu=True, bf16=False, **small))
    base = AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="sdpa")
    parts = {task: language.rows(4).remove_columns("task") for task in TASKS}
    return {"model": get_peft_model(base, language.lora()), "dataset": language.rows(16), "parts": parts}


def for_language_models(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """docs/language-models.md: an adapter for the page's tasks in runs/adapter, trained for one step."""
    from typer.testing import CliRunner

    from ortholora.cli.app import app
    from tiny_language import COLOURS, language_config

    chats = [
        {"channel": channel, "messages": [{"role": "user", "content": "dog"}, {"role": "assistant", "content": "woof"}]}
        for channel in ("refund", "order") * 8
    ]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(chat) for chat in chats) + "\n", encoding="utf-8")
    colours = {"train": "train-qa.jsonl", "dev": "dev-qa.jsonl", "split_by": "task", "only": "colour"}
    support = {"train": "chats.jsonl", "dev": "chats.jsonl", "split_by": "channel", "max_new_tokens": 4}
    tasks = [
        {"name": "sentiment", "kind": "completion", "labels": sorted(COLOURS.values()), **colours},
        {"name": "support", "kind": "chat", **support},
    ]
    arguments = ["train", str(language_config(folder, tasks=tasks)), "--out", "runs/adapter", "--max-steps", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return {"backbone": str(folder / "llama")}


def for_every_lora(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """docs/every-lora.md."""
    return {"base": language.base()}


GIVEN: dict[str, Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]] = {
    "README.md": plain,
    "docs/package.md": plain,
    "docs/every-lora.md": for_every_lora,
    "docs/language-models.md": for_language_models,
    "docs/rules.md": for_rules,
    "docs/scaling.md": for_processes,
    "docs/trainers.md": for_trainers,
}

# ---- What must hold after a page's snippets --------------------------------------------------------------------


def the_loop_trained(names: dict[str, Any]) -> None:
    """README.md: the model moved, `stats` are those of the last step, and nothing is attached any more."""
    before, after = (language.lora_weights(model) for model in (language.adapted(), names["peft_model"]))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert names["stats"].gram.shape[1:] == (2, 2)
    names["loss_of"](names["peft_model"], {k: v for k, v in batch(0).items() if k != "task_ids"}).backward()


def the_rules_decide(names: dict[str, Any]) -> None:
    """docs/rules.md: the rules that it shows train a model."""
    from ortholora import OrthoLora

    for rule in (names["loudest_wins"], "my_rules:loudest_wins", names["Steady"](), "my_rules:Steady"):
        model = language.adapted()
        ortho, part = OrthoLora(model, TASKS[:2], rule), Part(0)
        with ortho.batch(part.ids):
            losses_of(model, part).mean().backward()
        assert bool(ortho.resolve().weights.isfinite().all())
    assert any(float(p.grad.abs().max()) > 0 for p in names["model"].parameters() if p.requires_grad)


def the_trainer_trained(names: dict[str, Any]) -> None:
    assert names["trainer"].state.global_step == 1
    assert sorted(set(names["dataset"]["task"])) == sorted(TASKS)


def the_adapter_is_plain_lora(names: dict[str, Any]) -> None:
    saved = json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert (saved["init_lora_weights"], saved["r"]) == (True, 2 * names["model"].peft_config["default"].r)


AFTER: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": the_loop_trained,
    "docs/every-lora.md": the_adapter_is_plain_lora,
    "docs/rules.md": the_rules_decide,
    "docs/trainers.md": the_trainer_trained,
}


def as_module(name: str, names: dict[str, Any]) -> ModuleType:
    """Let the page's names be imported as a module that the page calls so."""
    module = ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    return module
