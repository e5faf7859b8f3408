"""What a planner leaves open, decided by the model and the device: the layout, and what one more micro-batch costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ortholora.data.planner import Planner
from ortholora.engine.layers import find_matrices
from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel
from ortholora.models.packed import has_flash_attention

#: Floating-point operations that could be done in the time in which a layer is launched, forward and backward.
#: CPU: measured with `benchmarks/launch.py` on MiniLM, float32 and bfloat16 (benchmarks/results/launch.json).
#: Accelerators: an estimate, 1 ms a layer at 300 TFLOP/s, not measured. It only decides how finely steps are
#: cut, never what is computed; `mixing.launch_tokens` sets it by hand.
FLOPS_PER_LAYER = {"cpu": 7e8}
ACCELERATOR_FLOPS_PER_LAYER = 3e11


def complete(planner: Planner, model: AdaptedModel, device: str) -> Planner:
    """Decide what the planner left open. Not by the rule: every method gets the same cuts.

    Args:
        planner: The planner as it was given.
        model: The model that is trained.
        device: `"cpu"`, `"cuda"`, …
    """
    layout = planner.layout
    if layout == "auto":
        layout = "by-length"
        if any(matrix.task_pure for matrix in find_matrices(model)):
            layout = "by-task"
        elif device != "cpu" and has_flash_attention(model.backbone):
            layout = "padding-free"
    cost = planner.launch_tokens
    if cost is None:
        cost = launch_tokens(model, device)
    return replace(planner, layout=layout, launch_tokens=cost, multiple=padding_multiple(device))


def check_layout(layout: str, model: nn.Module, tasks: int) -> None:
    """Check that task gradients can be captured in micro-batches of a layout, before the first step finds out.

    Args:
        layout: The planner's layout.
        model: The model that is trained.
        tasks: The number of tasks.

    Raises:
        UserError: Micro-batches hold several tasks, and a matrix cannot be split by row.
    """
    pure = [matrix for matrix in find_matrices(model) if matrix.task_pure]
    if tasks > 1 and pure and layout not in ("auto", "by-task"):
        raise UserError(
            f"{pure[0].name} cannot be split by row ({len(pure)} such matrices)",
            expected="micro-batches of one task: `mixing.layout: by-task`, or `auto`",
            found=f"`mixing.layout: {layout}`; {pure[0].task_pure}",
            todo="change `mixing.layout`, or leave the module out of `lora.target_modules`",
        )


def padding_multiple(device: str) -> int:
    """Matrix units of accelerators like multiples of 8; on a CPU they would only be padding."""
    return 1 if device == "cpu" else 8


def launch_tokens(model: nn.Module, device: str) -> float:
    """Tokens that could be trained on in the time that launching the model once more takes.

    A token costs about 4 FLOPs a parameter in LoRA training (2 forward, 2 for the input gradient).

    Args:
        model: A backbone with `config.num_hidden_layers`, or anything that contains one.
        device: `"cpu"`, `"cuda"`, …
    """
    layers = max((_layers(module) for module in model.modules()), default=0) or 1
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    return layers * FLOPS_PER_LAYER.get(device, ACCELERATOR_FLOPS_PER_LAYER) / (4 * max(1, parameters))


def _layers(module: nn.Module) -> int:
    config: Any = getattr(module, "config", None)
    layers = getattr(config, "num_hidden_layers", 0)
    return layers if isinstance(layers, int) else 0
