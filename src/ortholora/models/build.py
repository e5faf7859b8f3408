"""A run's configuration → its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from ortholora.config.schema import Config
from ortholora.data.task import TaskData
from ortholora.models.adapted import AdaptedModel
from ortholora.models.adapter import add_lora
from ortholora.models.card import ModelCard
from ortholora.models.kinds import model_of, spec_of
from ortholora.models.probes import check_positions


def make_card(config: Config, tasks: Sequence[TaskData]) -> ModelCard:
    """What a run of these tasks saves beside its adapter."""
    folder = Path(config.backbone)
    return ModelCard(
        # A relative folder would be another one where the run is used.
        backbone=str(folder.absolute()) if folder.is_dir() else config.backbone,
        revision=config.revision,
        dtype=config.dtype,
        pooling=config.pooling,
        max_length=config.max_length,
        tasks=tuple(spec_of(task) for task in tasks),
    )


def build_model(config: Config, card: ModelCard, seed: int) -> AdaptedModel:
    """Backbone, LoRA adapter and heads, all drawn from the seed."""
    lora, kind = config.lora, model_of(card)
    options = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
        "use_rslora": lora.rslora,
        **lora.options,
    }
    bare = kind.load_backbone(config.backbone, getattr(torch, config.dtype), config.revision)
    return wrap(add_lora(bare, options, seed, kind.task_type), card, config.head_dropout, seed)


def wrap(peft_model: PeftModel, card: ModelCard, dropout: float = 0.1, seed: int = 0) -> AdaptedModel:
    """Put what a card says around a PEFT model, and try it out.

    Raises:
        UserError: The backbone is of another kind than its tasks, or cannot read rows as long as they may be.
    """
    model = model_of(card).from_card(peft_model, card, dropout, seed)
    model.try_out()
    for longest, settings in model.longest_rows(card.max_length):
        check_positions(model, longest, settings)
    return model
