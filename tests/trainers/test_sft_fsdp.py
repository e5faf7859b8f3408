"""`OrthoSFTTrainer` under FSDP2: two processes with a sharded base do what one process does."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl")

import many_sft
from many_sft import trained
from peft import PeftModel

import language
from forked import in_ranks
from ortholora.errors import UserError
from ortholora.trainers.sharded import check_only_lora

# transformers 5 renamed the argument; both names work.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning")

LOGS = {"logging_strategy": "steps", "logging_steps": 1}
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
ADAPTER = "adapter_model.safetensors"


def sharded(out: Path, runs: list[dict[str, Any]], ranks: int = 2) -> list[dict[str, Any]]:
    """Do the runs one after the other, in the same processes."""
    in_ranks(ranks, many_sft.sharded, out, runs, ranks)
    return torch.load(out / "result.pt", weights_only=False)


@functools.cache
def alone(run: str) -> tuple[dict[str, Any], Path]:
    """The same in this process, without shards."""
    folder = Path(tempfile.mkdtemp())
    return trained(folder, json.loads(run), 1), folder


def assert_same_run(found: dict[str, Any], folder: Path, run: dict[str, Any], tolerance: float = 1e-5) -> None:
    expected, one = alone(json.dumps({key: value for key, value in run.items() if key != "folder"}))
    assert found["kinds"] == {"DTensor"}
    assert found["switch"] is None  # or the next training in that process would be sharded, too
    assert found["loss"] == pytest.approx(expected["loss"], rel=10 * tolerance)
    assert found["best"] == expected["best"]
    keys = ["loss", *(f"loss/{task}" for task in language.TASKS), "conflict/removed"]
    logs = [
        [{k: entry[k] for k in keys if k in entry} for entry in one["logs"] if "loss" in entry]
        for one in (found, expected)
    ]
    assert len(logs[0]) == len(logs[1]) > 0
    for entry, other in zip(*logs, strict=True):
        assert entry == pytest.approx(other, rel=100 * tolerance, abs=100 * tolerance)
    assert {path.name for path in (folder / "model").iterdir()} == {path.name for path in (one / "model").iterdir()}
    assert_same_adapter(folder / "model", one / "model", tolerance)


def assert_same_adapter(folder: Path, other: Path, tolerance: float = 1e-5) -> None:
    weights, others = load_file(folder / ADAPTER), load_file(other / ADAPTER)
    assert weights.keys() == others.keys()
    assert max(float((weights[key] - value).abs().max()) for key, value in others.items()) < tolerance


def test_two_processes_with_a_sharded_base_are_one(tmp_path: Path) -> None:
    """Trained, evaluated and saved; plain PEFT loads it, and one process goes on from the checkpoint."""
    run = {"folder": "a", **LOGS, **SAVED}
    (found,) = sharded(tmp_path, [run | {"stop_after": 2}])
    assert_same_run(found, tmp_path / "a", run | {"stop_after": 2})
    PeftModel.from_pretrained(language.base(), str(tmp_path / "a" / "model"))
    names = {path.name for path in (tmp_path / "a" / "run" / "checkpoint-2").iterdir()}
    assert {ADAPTER, "optimizer.pt", "ortholora_state.pt", "rng_state_0.pth", "rng_state_1.pth"} <= names
    assert not any("fsdp" in name for name in names)
    own = {key: value for key, value in run.items() if key != "folder"}
    trained(tmp_path / "a", own, 1)
    assert_same_adapter(tmp_path / "a" / "model", alone(json.dumps(own))[1] / "model")


@pytest.mark.slow
def test_resumed_best_packed_and_halved(tmp_path: Path) -> None:
    """Gone on with by two, ended with the best; evaluated before it trains; checkpointing, packing, bfloat16."""
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    runs = [
        {"folder": "a", **LOGS, **SAVED, **best, "optim": "sgd", "learning_rate": 0.5},
        {"folder": "p", **LOGS, "packing": True, "rows": 2, "gradient_checkpointing": True, "evaluate_first": True},
        {"folder": "h", **LOGS, "bf16": True, "dtype": "bfloat16"},
    ]
    _, *found = sharded(tmp_path, [runs[0] | {"stop_after": 2}, *runs])
    for made, run, tolerance in zip(found, runs, (5e-5, 1e-5, 2e-2), strict=True):
        assert_same_run(made, tmp_path / run["folder"], run, tolerance)
    own = {key: value for key, value in runs[1].items() if key != "folder"}
    assert found[1]["before"] == pytest.approx(alone(json.dumps(own))[0]["before"])


def test_what_is_trained_besides_lora_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_only_lora(language.adapted())
    model = language.adapted(modules_to_save=["lm_head"])
    language.sft_trainer(tmp_path, model=model)
    monkeypatch.setattr("ortholora.trainers.sft.uses_fsdp2", lambda accelerator: True)
    with pytest.raises(UserError, match=r"cannot train this with FSDP2(?s:.*)lm_head"):
        language.sft_trainer(tmp_path, model=model)
