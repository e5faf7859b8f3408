"""Weights of a sharded `AdaptedModel` (FSDP2), whole on the disk: the adapter, and the heads beside it."""

from __future__ import annotations

from pathlib import Path

from ortholora.models.adapted import AdaptedModel
from ortholora.models.loading import load_heads, read_tensors
from ortholora.models.saving import Weights
from ortholora.trainers.whole import load_sharded_adapter, reshard, take_part, whole, whole_adapter


def whole_weights(model: AdaptedModel) -> Weights:
    """The adapter and the heads, whole on every rank. A collective; the base stays where it is."""
    reshard(model)
    return Weights(
        whole_adapter(model.peft_model, embeddings=False),
        {name: whole(tensor.detach()) for name, tensor in model.extra_weights().items()},
    )


def load_sharded_weights(folder: Path, model: AdaptedModel) -> None:
    """Put the saved adapter and heads into a sharded model: each rank takes its part. No communication.

    Raises:
        UserError: The files are damaged or another model's.
    """
    reshard(model)
    load_sharded_adapter(folder, model.peft_model, read_tensors)
    load_heads(folder, model, take_part)
