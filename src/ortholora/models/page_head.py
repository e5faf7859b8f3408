"""What the pages of adapters and of exported models have in common: the head that the hub reads."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from ortholora.models.backbone import hub_id
from ortholora.models.card import ModelCard


def front_matter(card: ModelCard, library: str, with_heads: bool, tags: list[str], datasets: Sequence[str] = ()) -> str:
    """The head as YAML, without its marks.

    Args:
        card: What the model is.
        library: What loads it.
        with_heads: Whether tasks have heads (an encoder).
        tags: By which it is found, `ortho-lora` besides.
        datasets: Data sets on the hub that it was trained on.
    """
    task = None if with_heads else "text-generation"
    data = ModelCardData(
        library_name=library,
        pipeline_tag=task,
        base_model=hub_id(card.backbone),
        tags=["ortho-lora", *tags],
        datasets=list(datasets) or None,
    )
    return data.to_yaml()


def counted(card: ModelCard) -> str:
    """How many tasks, in words."""
    return "one task" if len(card.tasks) == 1 else f"{len(card.tasks)} tasks"
