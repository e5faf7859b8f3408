"""Law 4 for the trainer with a sharded base: FSDP2 in two processes trains, saves and answers like one process."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from many import Plan, trained, trained_by
from safetensors.torch import load_file
from transformers.training_args import ParallelMode

import language
import workspaces
from ortholora.errors import UserError
from ortholora.trainers.sharded import check_arguments, check_sharding, layer_classes, prepare_sharding
from ortholora.trainers.whole import load_sharded_adapter

MIXED = {"layout": "mixed", "rows_per_task": 4}
BEST = {"save_every": 2, "eval_every": 2, "selection": "best"}

needs_fsdp2 = pytest.mark.skipif(
    "fsdp_version" not in FullyShardedDataParallelPlugin.__dataclass_fields__, reason="Accelerate 1.6 brought FSDP2"
)


def sharded(out: Path, runs: list[Plan]) -> list[dict[str, Any]]:
    """Do the runs one after the other, in the same two processes."""
    return trained_by(2, out, [run | {"fsdp": True} for run in runs])


@functools.cache
def alone(run: str) -> tuple[dict[str, Any], Path]:
    """The same in this process, without shards."""
    folder = Path(tempfile.mkdtemp())
    return trained(folder, json.loads(run)), folder


def assert_same_run(found: dict[str, Any], folder: Path, run: Plan, tolerance: float = 2e-5) -> None:
    expected, one = alone(json.dumps(run))
    assert found["kinds"] == {"DTensor"}
    assert found["switches"] == []  # or the next training in that process would be sharded, too
    assert found["tokens"][0] == expected["tokens"][0]
    assert found["losses"] == pytest.approx(expected["losses"], rel=10 * tolerance)
    assert found["scores"].keys() == expected["scores"].keys()
    assert found["scores"]["eval_average"] == pytest.approx(expected["scores"]["eval_average"], abs=0.05)
    names = {path.name for path in (one / "model").iterdir()}
    assert {path.name for path in (folder / "model").iterdir()} == names  # plain PEFT, and nothing of FSDP2
    for name in names & {"adapter_model.safetensors", "heads.safetensors"}:
        weights, others = load_file(folder / "model" / name), load_file(one / "model" / name)
        assert weights.keys() == others.keys()
        assert max(float((weights[key] - other).abs().max()) for key, other in others.items()) < tolerance


@needs_fsdp2
def test_two_processes_with_a_sharded_base_are_one(tmp_path: Path) -> None:
    """Trained, evaluated and saved; the checkpoint is what one process writes, and is gone on from by one."""
    run = {"folder": "a", "method": "ortho", "sections": {"mixing": MIXED, "training": {"save_every": 2}}}
    (found,) = sharded(tmp_path, [run | {"stop_after": 4}])
    assert_same_run(found, tmp_path / "a", run | {"stop_after": 4})
    whole, one = alone(json.dumps(run))
    resumed = trained(tmp_path / "a", run)
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    weights, others = (load_file(each / "model" / "adapter_model.safetensors") for each in (tmp_path / "a", one))
    assert max(float((weights[key] - other).abs().max()) for key, other in others.items()) < 2e-5


@needs_fsdp2
@pytest.mark.slow
def test_resumed_best_and_languages(tmp_path: Path) -> None:
    """One start: a run that goes on from its checkpoint and ends with its best, a language model, and bfloat16."""
    best = {"folder": "a", "method": "ortho", "sections": {"mixing": MIXED, "training": BEST}}
    language = {"folder": "l", "method": "ortho", "language": True, "sections": {"mixing": {"rows_per_task": 4}}}
    half = {"folder": "b", "method": "ortho", "sections": {"mixing": MIXED, "dtype": "bfloat16"}}
    _, resumed, spoken, halved = sharded(tmp_path, [best | {"stop_after": 4}, best, language, half])
    assert_same_run(resumed, tmp_path / "a", best)
    assert_same_run(spoken, tmp_path / "l", language, 2e-4)
    assert_same_run(halved, tmp_path / "b", half, 2e-2)


def accelerator(**plugin: Any) -> Any:
    usual = {"fsdp_version": 2, "cpu_offload": None, "cpu_ram_efficient_loading": False}
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**(usual | plugin))))


ARGUMENTS = SimpleNamespace(fsdp=True, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (SimpleNamespace(state=SimpleNamespace()), "Accelerate leaves out on cpu"),
        (SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=object())), "DeepSpeed"),
        (accelerator(fsdp_version=1), "FSDP1"),
        (accelerator(cpu_offload=SimpleNamespace(offload_params=True)), "CPU offload"),
        (accelerator(cpu_ram_efficient_loading=True), "fsdp_cpu_ram_efficient_loading: false"),
    ],
)
def test_what_is_refused(made: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"OrthoTrainer cannot train so(?s:.*){message}"):
        check_sharding(made, ARGUMENTS, "OrthoTrainer")


def test_what_is_taken() -> None:
    check_sharding(accelerator(), ARGUMENTS, "OrthoTrainer")
    check_sharding(accelerator(cpu_offload=SimpleNamespace(offload_params=False)), ARGUMENTS, "OrthoTrainer")


def test_several_gpus_of_one_process_are_left_alone() -> None:
    """A Trainer would wrap the model in DataParallel by itself."""
    usual = {"fsdp": False, "deepspeed": None, "parallel_mode": ParallelMode.NOT_DISTRIBUTED}
    arguments = SimpleNamespace(**usual, n_gpu=2, _n_gpu=2)
    check_arguments(arguments, "OrthoTrainer")
    assert arguments._n_gpu == 1


def test_the_layers_that_are_sharded_one_by_one() -> None:
    layer, model = type("Layer", (torch.nn.Linear,), {}), torch.nn.Module()
    model.part = torch.nn.Sequential(layer(1, 1))
    model.part._no_split_modules = ["Layer", "Absent"]  # type: ignore[assignment]
    assert layer_classes(model) == ["Layer"]
    made = accelerator(mixed_precision_policy=object())
    made.is_fsdp2 = True
    prepare_sharding(made, ARGUMENTS, model, "OrthoTrainer")
    assert model._no_split_modules == ["Layer"]
    assert made.state.fsdp_plugin.mixed_precision_policy is None


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT 0.18 looks for the backbone's
def test_the_adapter_of_another_model_and_a_damaged_one(tmp_path: Path) -> None:
    made, other = language.adapted(), language.adapted(seed=2)
    other.save_pretrained(str(tmp_path))
    load_sharded_adapter(tmp_path, made)
    expected = language.lora_weights(other)
    assert all(torch.equal(weight, expected[name]) for name, weight in language.lora_weights(made).items())
    with pytest.raises(UserError, match=r"holds the weights of another model(?s:.*)another shape"):
        load_sharded_adapter(tmp_path, language.adapted(r=3))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be resumed"):
        load_sharded_adapter(tmp_path, made)


def test_of_several_processes_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the others, each has the state of its own generators."""
    made = workspaces.trainer(tmp_path / "run")
    made.create_optimizer_and_scheduler(1)
    monkeypatch.setattr(type(made), "is_sharded", True)
    for name, main in (("first", True), ("other", False)):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(type(made.args), "should_save", main)
        made.save_model(str(folder))
        made._save_optimizer_and_scheduler(str(folder))
        made._save_rng_state(str(folder))
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert {"adapter_model.safetensors", "heads.safetensors", "optimizer.pt", "scheduler.pt"} <= names
    assert "ortholora_state.pt" in names
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["rng_state.pth"]
