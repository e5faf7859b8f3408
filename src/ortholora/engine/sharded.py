"""FSDP2 (`fully_shard`): parameters that live as DTensors, one part on every rank.

During forward and backward a layer sees its full weights, so the capture is the same as without shards, and every
rank holds full task gradients of its own rows. They are reduced over the ranks like everybody else's; only what
is written to `.grad`, and compared with it, is this rank's part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ortholora.engine.distributed import world_size
from ortholora.engine.layers import Matrix
from ortholora.errors import CaptureError


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor. By its attribute: torch may be built without `torch.distributed`."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part_of(full: Tensor, parameter: Tensor) -> Tensor:
    """What this rank holds of a full `[*shape]` tensor that is laid out like the parameter: a view, maybe empty."""
    if not is_sharded(parameter):
        return full
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    for dim, placement in enumerate(parameter.placements):  # type: ignore[attr-defined]
        if placement.is_shard():
            # As FSDP2 cuts: `torch.chunk`, whose last parts may be smaller or missing.
            parts = full.chunk(mesh.size(dim), placement.dim)
            rank = mesh.get_local_rank(dim)
            full = parts[rank] if rank < len(parts) else full.narrow(placement.dim, 0, 0)
    return full


def sharding_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that `fully_shard` was called on."""
    return [m for m in model.modules() if any(cls.__name__ == "FSDPModule" for cls in type(m).__mro__)]


def gather_around(modules: Sequence[nn.Module], inner: nn.Module) -> None:
    """Gather what the modules around an inner one hold themselves, as their own forward would. A collective.

    Args:
        modules: What `sharding_modules` found.
        inner: A module that is about to be called without them.
    """
    for module in modules:
        if module is not inner and any(part is inner for part in module.modules()):
            module.unshard()  # type: ignore[operator]


def refuse_layouts(matrices: Sequence[Matrix]) -> None:
    """Refuse sharded parameters whose `.grad` this module could not write.

    Raises:
        CaptureError: Tensor parallelism, a mesh of a part of the ranks, or parameters offloaded to the CPU.
    """
    for matrix in matrices:
        found = _why_not(matrix.parameter) if is_sharded(matrix.parameter) else None
        if found is not None:
            raise CaptureError(
                f"{matrix.name} is sharded in a way that is not supported",
                expected="fully_shard over all ranks (FSDP2, with or without replicas), on the device that computes",
                found=found,
                todo="use one data-parallel mesh over all ranks, without CPU offload and tensor parallelism, or DDP",
            )


def refuse_task_pure(matrix: Matrix) -> None:
    """Refuse a task-pure matrix under FSDP2: its gradient never arrives at the parameter that could be hooked.

    Raises:
        CaptureError: Names the matrix and why it is task-pure.
    """
    if is_sharded(matrix.parameter):
        raise CaptureError(
            f"{matrix.name} cannot be captured under FSDP2",
            expected="LoRA matrices that are called as linear modules",
            found=f"one whose gradient only a hook could take ({matrix.task_pure})",
            todo="leave the module out of `target_modules`, or train with DDP",
        )


def _why_not(parameter: torch.Tensor) -> str | None:
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    if any(type(placement).__name__ not in ("Shard", "Replicate") for placement in placements):
        return f"placements {placements}"
    if mesh.size() != world_size():
        return f"a mesh of {mesh.size()} among {world_size()} ranks"
    if mesh.device_type != parameter.device.type:
        return f"the parameter on {parameter.device.type}, the products on {mesh.device_type}"
    return None
