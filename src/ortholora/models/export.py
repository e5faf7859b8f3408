"""A run's adapter merged into its backbone: a folder that plain transformers loads, with nothing of PEFT or of ours.

```
config.json, model.safetensors, tokenizer files   what transformers writes and reads
heads.safetensors, heads.json                     the task heads, and how to use them (an encoder's)
README.md                                         the lines of Python that load it
```
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ortholora.errors import UserError, listing
from ortholora.files import publish_folder, stage, write_json, write_text
from ortholora.models.adapted import AdaptedModel
from ortholora.models.backbone import load_tokenizer
from ortholora.models.card import ModelCard
from ortholora.models.export_page import export_page
from ortholora.models.loading import load_model
from ortholora.models.saving import HEADS

HEADS_CONTENT = "heads.json"
#: Most of the difference that merging may make to a model's outputs, as a share of their length: rounding makes less.
_ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2}
#: Most of the adapter's own effect on the outputs that may be lost, and float32's noise beside the outputs.
_LOST, _NOISE = 0.25, 1e-6


def export(run: Path, out: Path) -> ModelCard:
    """Merge the adapter of a run into its backbone, and write the model with tokenizer and heads.

    Args:
        run: The run's folder.
        out: The new folder; it must not exist, or be empty.

    Returns:
        The run's card.

    Raises:
        UserError: `run` is no run or damaged, its backbone cannot be had, its adapter cannot be merged, or `out` has
            something in it.
    """
    out = out.expanduser().resolve()
    _check_free(out)
    model, card = load_model(run)
    tokenizer = load_tokenizer(card.backbone, card.revision)
    heads = {name: weight.detach().clone().contiguous() for name, weight in model.extra_weights().items()}
    merged = _merge(model, card)
    beside = out.with_name(f".{out.name}.export")
    try:
        with stage(beside) as staged:
            merged.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
            if heads:
                _write_heads(staged, heads, card)
            write_text(staged / "README.md", export_page(card, with_heads=bool(heads), options=_load_options(merged)))
            publish_folder(staged, out)
    finally:
        with suppress(OSError):  # not there
            beside.rmdir()
    return card


def _check_free(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    raise UserError(
        f"{out} is not free",
        expected="a new folder for the exported model, or an empty one",
        found=f"a folder with {listing(sorted(path.name for path in out.iterdir()), 6)}" if out.is_dir() else "a file",
        todo="give another --out, or remove it",
    )


def _merge(model: AdaptedModel, card: ModelCard) -> Any:
    """The backbone with the adapter in its weights.

    Raises:
        UserError: Two parts of the model share a weight that only one of them adapts, or the outputs changed.
    """
    if shared := _shared_bases(model.peft_model):
        raise _unmergeable(f"LoRA on {listing(shared, 4)}, whose weight another part of the model uses, too")
    before = _outputs(model.peft_model)
    with model.peft_model.disable_adapter():
        effect = float((before - _outputs(model.peft_model)).norm())
    try:
        merged: Any = model.peft_model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:  # weights that overflow; kinds of LoRA that cannot be merged
        raise _unmergeable(" ".join(str(error).split())[:300]) from error
    apart, length = float((_outputs(merged) - before).norm()), float(before.norm().clamp_min(1e-12))
    if not apart <= _ROUNDING[card.dtype] * length:  # NaN as well
        raise _unmergeable(f"outputs that differ by {apart / length:.1%} from those with the adapter")
    # A short training in bfloat16 may do less than what its weights are rounded to.
    if apart > _LOST * effect + _NOISE * length:
        lost = apart / max(effect, 1e-12)
        raise _unmergeable(f"{card.dtype} weights, in which {lost:.0%} of what the adapter does is rounded away")
    return merged


def _shared_bases(model: nn.Module) -> list[str]:
    """Adapted layers whose own weight has a second place in the model: tied embeddings."""
    places: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    return [
        name.removeprefix("base_model.model.")
        for name, layer in layers
        if any(places[id(parameter)] > 1 for parameter in layer.get_base_layer().parameters())
    ]


@torch.inference_mode()
def _outputs(model: Any) -> Tensor:
    """What the model gives for a few tokens, in float32 on the host."""
    embeddings = model.get_input_embeddings().weight
    ids = torch.arange(16, device=embeddings.device)[None] * max(len(embeddings) // 16, 1) % len(embeddings)
    # As in training: the float32 weights of an adapter in a bfloat16 backbone multiply in bfloat16.
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=embeddings.dtype == torch.bfloat16):
        given = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    first: Tensor = given[0]
    return first.float().cpu()


def _unmergeable(found: str) -> UserError:
    return UserError(
        "The adapter cannot be merged into its backbone",
        expected="LoRA on layers with weights of their own, so that the merged model gives the same outputs",
        found=found,
        todo="serve the adapter as it is: PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), folder); or "
        "train without LoRA on these layers, or with `dtype: float32` where rounding is the reason",
    )


def _write_heads(folder: Path, heads: Mapping[str, Tensor], card: ModelCard) -> None:
    save_file(dict(heads), folder / HEADS)
    tasks: list[Any] = [spec.to_json() for spec in card.tasks]
    write_json(
        folder / HEADS_CONTENT,
        {"pooling": card.pooling, "max_length": card.max_length, "tasks": {task["name"]: task for task in tasks}},
    )


def _load_options(model: nn.Module) -> str:
    """Arguments of `from_pretrained` without which transformers draws a pooler that was never trained."""
    return ", add_pooling_layer=False" if "add_pooling_layer" in inspect.signature(type(model)).parameters else ""
