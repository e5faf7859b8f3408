"""FSDP2 under a Trainer: what is asked of it, and how a sharded model is run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import convert_to_fp32
from torch import nn
from transformers.training_args import ParallelMode

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel

#: Why it is refused, and the way out. The engine itself takes ZeRO-1 and ZeRO-2 (`engine/zero.py`).
DEEPSPEED = (
    "DeepSpeed, which Accelerate lets step in its backward, before a rule can decide",
    "use FSDP2 or DDP; or DeepSpeed's engine in a loop of your own (docs/scaling.md), stage 1 or 2",
)


def uses_fsdp2(accelerator: Any) -> bool:
    """Whether the model is, or will be, sharded."""
    return bool(getattr(accelerator, "is_fsdp2", False))


@contextmanager
def environment_kept() -> Iterator[None]:
    """Put back the switches of FSDP that making a Trainer leaves in the environment (also works as a decorator).

    Accelerate sets them for the whole process, and asks them only while it is made: the next Trainer would be sharded,
    too, or refused.
    """
    before = _switches()
    try:
        yield
    finally:
        for name in _switches():
            del os.environ[name]
        os.environ.update(before)


def _switches() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name.startswith(("ACCELERATE_USE_FSDP", "FSDP_"))}


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
        return DEEPSPEED
    if plugin is None:
        by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if not (args.fsdp or by_launcher):
            return None
        asked = "the training argument `fsdp`" if args.fsdp else "ACCELERATE_USE_FSDP (accelerate launch sets it)"
        return (
            f"FSDP, which Accelerate leaves out on {args.device.type}: every process would hold the whole model",
            f"start several processes on accelerators with torchrun or accelerate launch, or do without {asked}",
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
    if args.deepspeed:
        raise _refusal(trainer, *DEEPSPEED)
    if alone:
        raise _refusal(trainer, "FSDP in one process", "remove the setting, or start several processes")
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


def check_only_lora(model: nn.Module) -> None:
    """Refuse what else is trained: with TRL's loss an `lm_head` in shards got another gradient than in one process.

    Raises:
        UserError: Names the first such parameter.
    """
    other = next((name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name), None)
    if other is not None:
        raise UserError(
            "OrthoSFTTrainer cannot train this with FSDP2",
            expected="LoRA matrices as the only parameters that require gradients",
            found=other,
            todo="leave it out (`modules_to_save` of the LoraConfig), or use DDP",
        )


def run_sharded(accelerator: Any, model: nn.Module, *inputs: Any, **named: Any) -> Any:
    """A forward in the run's precision, as Accelerate makes it of a model without shards: its outputs in float32."""
    with accelerator.autocast():
        outputs = model(*inputs, **named)
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
