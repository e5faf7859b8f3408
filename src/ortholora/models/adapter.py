"""The LoRA adapter that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import nn

from ortholora.config.stored import Name, Stored
from ortholora.errors import UserError
from ortholora.models.passed_on import check_types

_Names = str | list[Name]


class AdapterFile(Stored):
    """What `adapter_config.json` must hold: PEFT itself takes a value of any type, and fails over it later.

    Only what decides the adapter's place and size; PEFT adds a key with every version.
    """

    peft_type: Literal["LORA"]
    r: Annotated[int, Field(gt=0)]
    lora_alpha: Annotated[float, Field(gt=0)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: _Names | None = None
    exclude_modules: _Names | None = None
    modules_to_save: list[Name] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: _Names | None = None
    rank_pattern: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None


def add_lora(
    encoder: nn.Module, options: Mapping[str, Any], seed: int, task_type: str = "FEATURE_EXTRACTION"
) -> PeftModel:
    """Put a LoRA adapter on the backbone.

    Args:
        encoder: The bare backbone.
        options: Arguments of `peft.LoraConfig`.
        seed: Seed of the initial A; drawn without touching the global generator.
        task_type: PEFT's name for what the backbone does, which decides the class of the PEFT model.

    Raises:
        UserError: The target modules match nothing, or an option does not exist.
    """
    options = {"task_type": task_type, **options}
    check_types("lora.options", options, LoraConfig)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(encoder, LoraConfig(**options))
    except Exception as error:  # PEFT fails in dozens of ways over its options
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in encoder.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            "The LoRA adapter could not be put on the backbone",
            expected=f"`lora.target_modules` that name modules of {type(encoder).__name__}, such as "
            f"{', '.join(linear[:8])}, or all-linear; and options that peft.LoraConfig has",
            found=f"target_modules = {options.get('target_modules')!r}: {type(error).__name__}: {str(error)[:300]}",
            todo="correct `lora:` in the configuration",
        ) from error
    assert isinstance(model, PeftModel)
    return model
