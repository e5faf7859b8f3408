"""DeepSpeed's ZeRO-1 and ZeRO-2: gradients that are reduced into parts of a flat buffer, and gone from `.grad`.

During forward and backward every rank has the full weights, so the capture is that of DDP. When the last backward of a
step returns, each rank holds the mean of its own part of the trained numbers, and `engine.step()` reads it there
(`averaged_gradients` in `runtime/zero/stage_1_and_2.py`). What the rule decides is written over it. That, and reading
it, goes through the methods that DeepSpeed binds to each parameter for `deepspeed.utils.safe_get_full_grad` and
`safe_set_full_grad`. Nothing of DeepSpeed is imported. Read and tried in DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from ortholora.engine.distributed import world_size
from ortholora.engine.layers import Matrix
from ortholora.errors import CaptureError


def is_owned(parameter: Tensor) -> bool:
    """Whether DeepSpeed's optimizer holds the parameter's gradient."""
    return hasattr(parameter, "_hp_mapping")


def reduced(parameter: Tensor) -> Tensor:
    """The mean over ranks of an owned parameter's gradient `[*shape]`, in float32. A collective."""
    return parameter.get_full_hp_grad()  # type: ignore[attr-defined]


def overwrite(parameter: Tensor, gradient: Tensor) -> None:
    """Put a full gradient `[*shape]` in the place of the reduced one: of this rank's part, if it has one."""
    parameter.set_full_hp_grad(gradient)  # type: ignore[attr-defined]


def refuse_unready(matrices: Sequence[Matrix]) -> None:
    """Refuse what DeepSpeed would not step by, before a step is resolved.

    Raises:
        CaptureError: ZeRO-3, offload, Muon, or a step whose last backward was not reduced.
    """
    for matrix in matrices:
        found = _why_not(matrix.parameter)
        if found is not None:
            raise CaptureError(
                f"The gradient of {matrix.name} cannot be written under DeepSpeed",
                expected="ZeRO-1 or ZeRO-2 over all ranks, without offload, and a last backward at the boundary of "
                "gradient accumulation",
                found=found[0],
                todo=found[1],
            )


def _why_not(parameter: Tensor) -> tuple[str, str] | None:
    if hasattr(parameter, "ds_id"):
        return "ZeRO-3, whose parameters are in parts also between forward and backward", "use FSDP2, or stage 1 or 2"
    if not is_owned(parameter):
        return None
    if getattr(parameter, "_hp_grad", None) is not None:
        return "BF16_Optimizer, which accumulates elsewhere", "leave `data_types` out of DeepSpeed's configuration"
    if world_size() > 1 and dist.get_world_size(parameter._dp_group) != world_size():  # type: ignore[attr-defined]
        return "shards over a part of the ranks", "use data parallelism alone"
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None  # no part of it is stepped here
    if mapping.use_offload:
        return "offload of the optimizer, whose clipping measures gradients in the backward", "leave offload out"
    if getattr(parameter, "use_muon", False):
        return "Muon, which changes gradients in the backward", "use another optimizer"
    if mapping.gradient_dict.get(mapping.param_group_index) is None:
        return (
            "gradients that are not reduced yet, or stepped already",
            "call engine.set_gradient_accumulation_boundary(True) before the last backward of a step, and "
            "resolve() before engine.step()",
        )
    return None
