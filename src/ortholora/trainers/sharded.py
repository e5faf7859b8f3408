"""FSDP2 under a Trainer: what is asked of it, and weights and optimizer states that are whole on the disk.

A checkpoint of a sharded run is an ordinary one: plain PEFT, and an optimizer's state as one process writes it. So it
is gone on from with any number of processes, sharded or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from transformers.training_args import ParallelMode

from ortholora.engine.sharded import is_sharded, local, part_of, sharding_modules
from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel
from ortholora.models.loading import load_heads, read_tensors
from ortholora.models.saving import ADAPTER, Weights


def uses_fsdp2(accelerator: Any) -> bool:
    """Whether the model is, or will be, sharded."""
    return bool(getattr(accelerator, "is_fsdp2", False))


def check_sharding(accelerator: Any, args: Any, trainer: str) -> None:
    """Refuse what would own the gradients, or would not shard although it was asked for.

    Args:
        accelerator: The Trainer's.
        args: The Trainer's arguments.
        trainer: Its name, for the message.

    Raises:
        UserError: Names the setting.
    """
    found = _why_not(accelerator, args)
    if found is not None:
        raise _refusal(trainer, *found)


def _refusal(trainer: str, found: str, todo: str) -> UserError:
    return UserError(
        f"{trainer} cannot train so",
        expected="one process; or several with DDP, or with FSDP2 (`fsdp_version: 2`) without offload on accelerators",
        found=found,
        todo=todo,
    )


def _why_not(accelerator: Any, args: Any) -> tuple[str, str] | None:
    state = accelerator.state
    plugin = getattr(state, "fsdp_plugin", None)
    if getattr(state, "deepspeed_plugin", None) is not None:
        return "DeepSpeed", "use FSDP2, or DDP"
    if plugin is None:
        asked = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        why = f"FSDP, which Accelerate leaves out on {args.device.type}: every process would hold the whole model"
        return (
            (why, "start on accelerators with torchrun or accelerate launch, or remove the setting") if asked else None
        )
    if getattr(plugin, "fsdp_version", 1) != 2:
        return "FSDP1, which moves gradients into flat parameters", "set `fsdp_version: 2`"
    offload = plugin.cpu_offload
    if getattr(offload, "offload_params", type(offload).__name__ == "CPUOffloadPolicy"):
        return "FSDP2 with CPU offload", "set `fsdp_offload_params: false`"
    if plugin.cpu_ram_efficient_loading:
        return (
            "`cpu_ram_efficient_loading`, with which all processes but one would try an empty model out",
            "set `fsdp_cpu_ram_efficient_loading: false`",
        )
    return None


def check_arguments(args: Any, trainer: str) -> None:
    """Refuse what the Trainer itself would fail over; and keep it from wrapping the model in DataParallel by itself.

    Raises:
        UserError: DeepSpeed, or FSDP in one process.
    """
    alone = bool(args.fsdp) and args.parallel_mode is not ParallelMode.DISTRIBUTED
    found = "DeepSpeed" if args.deepspeed else "FSDP in one process" if alone else None
    if found:
        raise _refusal(trainer, found, "remove the setting, or start several processes with FSDP2 or DDP")
    if args.n_gpu > 1:
        args._n_gpu = 1


def prepare_sharding(accelerator: Any, args: Any, model: nn.Module, trainer: str) -> None:
    """Check what was asked for, and say how an `AdaptedModel` is to be sharded.

    Raises:
        UserError: See `check_sharding`.
    """
    check_sharding(accelerator, args, trainer)
    if not uses_fsdp2(accelerator):
        return
    plugin = accelerator.state.fsdp_plugin
    model._no_split_modules = layer_classes(model)  # type: ignore[assignment]
    # It would cast whole parameters and what a model returns, so heads and losses; autocast does as elsewhere.
    plugin.mixed_precision_policy = None


def run_sharded(accelerator: Any, model: nn.Module, *inputs: Any) -> Any:
    """A forward in the run's precision, as Accelerate makes it of a model without shards: its outputs in float32."""
    with accelerator.autocast():
        outputs = model(*inputs)
    return convert_to_fp32(outputs)


def gather_while_answering(model: AdaptedModel) -> None:
    """A language model answers without a forward of the root, which alone gathers embeddings and the last layer."""
    if "answer" not in vars(model):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(model, "answer")


def layer_classes(model: nn.Module) -> list[str]:
    """Classes of the layers that the backbone wants whole, for FSDP2's policy; only those that are there."""
    present = {type(module).__name__ for module in model.modules()}
    wanted = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return sorted(present & wanted)


def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, on the host (a collective); a plain tensor itself."""
    return tensor.full_tensor().cpu() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole_weights(model: AdaptedModel) -> Weights:
    """The adapter and the heads, whole on every rank. A collective; the base stays where it is."""
    _reshard(model)
    state = model.peft_model.state_dict()
    kept = {id(tensor) for tensor in _adapter(model, state).values()}
    return Weights(
        {name: whole(tensor) if id(tensor) in kept else tensor for name, tensor in state.items()},
        {name: whole(tensor.detach()) for name, tensor in model.extra_weights().items()},
    )


def load_sharded_weights(folder: Path, model: AdaptedModel) -> None:
    """Put the saved adapter and heads into a sharded model: each rank takes its part. No communication.

    Raises:
        UserError: The files are damaged or another model's.
    """
    _reshard(model)
    saved, own = read_tensors(folder / ADAPTER), _adapter(model, model.peft_model.state_dict())
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in own.items()}:
        odd = sorted(saved.keys() ^ own.keys()) or ["matrices of another shape"]
        raise UserError(
            f"{folder} holds the weights of another model",
            expected="weights of the tasks and the adapter of this configuration",
            found=odd[0],
            todo="use the configuration that the folder was made with, or another --out",
        )
    with torch.no_grad():
        for name, value in saved.items():
            _take_part(own[name], value)
    load_heads(folder, model, _take_part)


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """An optimizer's `state_dict()` as one process has it. A collective."""
    return _each_tensor(optimizer.state_dict(), whole)


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load what one process, or `whole_optimizer_state`, wrote: each rank takes its parts."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    order = [index for group in state["param_groups"] for index in group["params"]]
    parts = {
        index: _each_tensor(state["state"][index], partial(_as, parameter))
        for index, parameter in zip(order, parameters, strict=True)
        if index in state["state"]
    }
    optimizer.load_state_dict({**state, "state": parts})


def _adapter(model: AdaptedModel, state: dict[str, Any]) -> dict[str, Tensor]:
    """Those of the PEFT model's tensors that it saves, by the names under which it saves them."""
    return get_peft_model_state_dict(model.peft_model, state_dict=state, save_embedding_layers=False)


def _reshard(model: nn.Module) -> None:
    """The root's weights may still lie gathered since the last forward."""
    for module in sharding_modules(model):
        module.reshard()  # type: ignore[operator]


def _take_part(own: Tensor, saved: Tensor) -> None:
    local(own).copy_(part_of(saved, own))


def _as(parameter: Tensor, value: Tensor) -> Tensor:
    """A value of the parameter's shape, laid out like it; counters as they are."""
    if not is_sharded(parameter) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor

    own = part_of(value, parameter).to(local(parameter).device, copy=True).contiguous()
    return DTensor.from_local(
        own,
        parameter.device_mesh,  # type: ignore[attr-defined]
        parameter.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=value.shape,
        stride=value.stride(),
    )


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_tensor(part, change) for key, part in value.items()}
    if isinstance(value, list):
        return [_each_tensor(part, change) for part in value]
    return value
