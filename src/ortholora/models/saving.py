"""A saved run's model: a plain PEFT adapter folder, the heads beside it, and what belongs together.

```
adapter_config.json, adapter_model.safetensors   what PEFT writes and reads
heads.safetensors                                the task heads (an encoder's)
ortholora.json                                   tasks, labels, pooling, backbone
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from safetensors.torch import save
from torch import Tensor

from ortholora.files import replace_file, write_json
from ortholora.models.adapted import AdaptedModel
from ortholora.models.backbone import portable_name
from ortholora.models.card import ModelCard

METADATA = "ortholora.json"
ADAPTER = "adapter_model.safetensors"
HEADS = "heads.safetensors"


class Weights(NamedTuple):
    """What is trained, where a model's own tensors are not whole.

    Attributes:
        peft: The PEFT model's `state_dict()`; only the adapter's tensors need be whole.
        extra: As `AdaptedModel.extra_weights()`.
    """

    peft: Mapping[str, Tensor]
    extra: Mapping[str, Tensor]


def save_model(folder: Path, model: AdaptedModel, card: ModelCard, weights: Weights | None = None) -> None:
    """Write adapter, heads and metadata into `folder`.

    The adapter's configuration names the backbone by the card's name, not by a path of this machine.

    Args:
        folder: Where to.
        model: The model.
        card: What belongs to it.
        weights: Its weights, where they are not to be taken from the model itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {} if weights is None else {"state_dict": weights.peft}
    with _portable_base_name(model.peft_model, card.backbone):
        # The base has no new embeddings; asking PEFT to look for them would ask the hub.
        model.peft_model.save_pretrained(str(folder), save_embedding_layers=False, **given)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card, all placeholders
    if extra := model.extra_weights() if weights is None else weights.extra:
        tensors = {name: weight.detach().cpu().contiguous() for name, weight in extra.items()}
        replace_file(folder / HEADS, lambda stream: stream.write(save(tensors)))
    write_json(folder / METADATA, card.to_json())


@contextmanager
def _portable_base_name(peft_model: PeftModel, backbone: str) -> Iterator[None]:
    config = peft_model.peft_config["default"]
    before = config.base_model_name_or_path
    config.base_model_name_or_path = portable_name(backbone)
    try:
        yield
    finally:
        config.base_model_name_or_path = before
