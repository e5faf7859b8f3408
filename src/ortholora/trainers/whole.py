"""Weights and optimizer states of a sharded model (FSDP2), whole on the disk.

A checkpoint of a sharded run is an ordinary one: plain PEFT, and an optimizer's state as one process writes it. So it
is gone on from with any number of processes, sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn

from ortholora.engine.distributed import of_first
from ortholora.engine.sharded import is_sharded, local, part_of, sharding_modules
from ortholora.errors import UserError


def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, on the host (a collective); a plain tensor itself."""
    return tensor.full_tensor().cpu() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole_adapter(model: PeftModel, embeddings: bool | str = "auto") -> dict[str, Tensor]:
    """A PEFT model's `state_dict()` in which all that PEFT saves is whole. A collective; the base stays where it is.

    PEFT itself cannot save the parts of a DTensor: `save_pretrained` asks for the memory of every tensor, to find those
    that share it, and a DTensor has none of its own.

    Args:
        model: The PEFT model; what is around it must not lie gathered (`reshard`).
        embeddings: PEFT's `save_embedding_layers`. With `"auto"` PEFT may ask the hub, so one rank decides for all.
    """
    reshard(model)
    state = model.state_dict()
    kept = set(of_first(lambda: _saved_names(model, state, embeddings)))
    return {name: whole(tensor) if name in kept else tensor for name, tensor in state.items()}


def load_sharded_adapter(
    folder: Path, model: PeftModel, read: Callable[[Path], dict[str, Tensor]] | None = None
) -> None:
    """Put saved adapters into a sharded PEFT model: each rank takes its part. No communication.

    Args:
        folder: What `save_pretrained` wrote: the adapter `default`, others in folders of their names.
        model: The PEFT model.
        read: Reads a file of weights.

    Raises:
        UserError: The files are damaged or another model's.
    """
    reshard(model)
    state = model.state_dict()
    for adapter in model.peft_config:
        place = folder if adapter == "default" else folder / adapter
        saved = (read or _read)(place / SAFETENSORS_WEIGHTS_NAME)
        own = _saved(model, state, adapter, embeddings=False)
        if saved.keys() - own.keys():  # embeddings may have been saved, too
            own |= {k: v for k, v in _saved(model, state, adapter, embeddings=True).items() if k in saved}
        if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in own.items()}:
            odd = sorted(saved.keys() ^ own.keys()) or ["matrices of another shape"]
            raise UserError(
                f"{place} holds the weights of another model",
                expected="weights of this model's adapter",
                found=odd[0],
                todo="use the settings that the folder was made with, or another output folder",
            )
        with torch.no_grad():
            for name, value in saved.items():
                take_part(own[name], value)


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


def reshard(model: nn.Module) -> None:
    """Give back what lies gathered: the root's weights may, since the last forward."""
    for module in sharding_modules(model):
        module.reshard()  # type: ignore[operator]


def _saved(model: PeftModel, state: dict[str, Any], adapter: str, embeddings: bool | str) -> dict[str, Tensor]:
    """Those of a state's tensors that PEFT saves, by the names under which it saves them."""
    return get_peft_model_state_dict(model, state, adapter, save_embedding_layers=embeddings)  # type: ignore[arg-type]


def _saved_names(model: PeftModel, state: dict[str, Any], embeddings: bool | str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says it again when it saves
        parts = [_saved(model, state, adapter, embeddings) for adapter in model.peft_config]
    kept = {id(tensor) for part in parts for tensor in part.values()}
    return [name for name, tensor in state.items() if id(tensor) in kept]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # a damaged header can name types and shapes that do not exist
        raise UserError(
            f"The checkpoint {path.parent} cannot be resumed",
            expected=f"{path.name} as PEFT writes it",
            found=f"{type(error).__name__}: {error}"[:200],
            todo="go on from another checkpoint",
        ) from error


def take_part(own: Tensor, saved: Tensor) -> None:
    """Copy this rank's part of a whole tensor into a DTensor; all of it into a plain one."""
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
