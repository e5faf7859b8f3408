"""docs/scaling.md, the Accelerate configurations beside it, and the formula of `benchmarks/scaling.py`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from engine import _models as models
from ortholora.engine import OrthoLora

ROOT = Path(__file__).parents[1]
CONFIGURATIONS = {
    "one": {"distributed_type": "NO", "num_processes": 1, "num_machines": 1, "mixed_precision": "bf16"},
    "ddp": {"distributed_type": "MULTI_GPU", "num_processes": 8, "num_machines": 1, "main_process_port": 0},
    "ddp-nodes": {"distributed_type": "MULTI_GPU", "num_processes": 16, "num_machines": 2, "machine_rank": 0},
    "fsdp2": {"distributed_type": "FSDP", "num_processes": 8, "num_machines": 1},
}


def scaling() -> Any:
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location("scaling", folder / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def test_every_shipped_configuration_is_checked() -> None:
    assert {path.stem for path in (ROOT / "examples" / "accelerate").glob("*.yaml")} == set(CONFIGURATIONS)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_accelerate_loads_the_configuration(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(ROOT / "examples" / "accelerate" / f"{name}.yaml"))
    for key, value in CONFIGURATIONS[name].items():
        assert getattr(getattr(found, key), "value", getattr(found, key)) == value
    if name == "fsdp2":
        assert found.fsdp_config["fsdp_version"] == 2
        assert found.fsdp_config["fsdp_offload_params"] is False  # which the engine refuses
    else:
        assert not found.fsdp_config
    assert not found.deepspeed_config
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert f"examples/accelerate/{name}.yaml" in text


def test_the_shapes_are_those_of_a_real_adapter() -> None:
    llama = scaling().Llama(hidden=8, inner=12, key_value=4, layers=2, vocabulary=19)
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=19,
    )
    base = LlamaForCausalLM(config)
    norms = sum(p.numel() for name, p in base.named_parameters() if "norm" in name)
    inputs = base.get_input_embeddings().weight.numel()  # looked up, not multiplied
    assert llama.parameters() == sum(p.numel() for p in base.parameters()) - norms - inputs
    ortho = OrthoLora(models.peft(base, "all-linear", r=3), ["a"])  # type: ignore[arg-type]
    assert sorted(llama.lora_shapes(3)) == sorted((len(g.matrices), g.numel) for g in ortho._groups)


def test_the_published_models_have_their_size() -> None:
    sizes = {name: model.parameters() / 1e9 for name, model in scaling().MODELS.items()}
    assert sizes == pytest.approx({"1 B": 1.24, "8 B": 7.5, "70 B": 69.5}, rel=0.01)


def test_spreading_pays_from_two_tasks_on() -> None:
    module = scaling()
    shapes = module.MODELS["8 B"].lora_shapes(16)
    for ranks in (2, 8, 16):
        for tasks in (2, 4, 64):
            of_step = module.sent(shapes, tasks, ranks)
            assert of_step["spread"] / of_step["whole"] == pytest.approx((tasks + 1) / (2 * tasks), rel=0.01)
    assert module.sent([(3, 10)], 4, 8)["spread"] == module.sent([(3, 10)], 4, 8)["whole"]  # fewer matrices than ranks


def test_the_committed_table_is_what_the_script_computes() -> None:
    module = scaling()
    results = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())["results"]
    assert results["lines"] == json.loads(json.dumps(module.compute()))
    table = module.table(module.compute())
    assert (ROOT / "benchmarks" / "results" / "scaling.md").read_text().strip() == table
    assert table in (ROOT / "docs" / "scaling.md").read_text()
