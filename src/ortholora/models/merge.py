"""Several single adapters → one: an ordinary PEFT adapter, without any training.

Scalings are read from PEFT's own layers and multiplied in, and the merged adapter's is 1. So rank-stabilised LoRA,
other ranks and patterns of ranks come out right, where PEFT's `add_weighted_adapter` may be silently wrong (its issue
3761).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from torch import nn

from ortholora.config.sections import MergeSection
from ortholora.errors import UserError
from ortholora.models import merge_math
from ortholora.models.loading import check_adapter
from ortholora.models.merge_math import Update

Kind = Literal["linear", "ties", "dare"]

#: Without held-out rows to choose it on; TIES takes a mean where the others take a sum.
SCALES: dict[Kind, float] = {"linear": 0.4, "ties": 1.0, "dare": 0.4}
#: Initial weights that leave the backbone as it is; others (PiSSA, OLoRA, LoftQ, …) train on a changed one.
_HARMLESS_INITS = (True, False, "gaussian", "orthogonal")

#: Module → task → its update.
_Updates = dict[str, dict[str, Update]]


@dataclass(frozen=True)
class Merge:
    """How adapters are merged; what has no effect on this kind is None.

    Attributes:
        kind: `linear` (task arithmetic), `ties` or `dare`.
        scale: What the merged update is multiplied by.
        weights: Task → what its update is multiplied by before.
        density: Share of the values that each task keeps.
        rank: Rank of the result; None: the sum of the single adapters' ranks.
    """

    kind: Kind
    scale: float
    weights: dict[str, float]
    density: float | None = None
    rank: int | None = None

    @classmethod
    def of(cls, kind: Kind, section: MergeSection, tasks: tuple[str, ...]) -> Self:
        """What the configuration says."""
        scale = SCALES[kind] if section.scale is None else section.scale
        weights = {task: section.weights.get(task, 1.0) for task in tasks}
        if kind == "linear":
            return cls(kind, scale, weights)
        return cls(kind, scale, weights, section.density, section.rank)


@dataclass(frozen=True)
class Merged:
    """A merged adapter on its backbone.

    Attributes:
        model: The PEFT model.
        rank: The largest rank of a module.
        kept: Share of the merged update's squared length that the rank leaves; 1 where the merge is exact.
    """

    model: PeftModel
    rank: int
    kept: float


def merge_adapters(bare: nn.Module, folders: Mapping[str, Path], how: Merge, seed: int) -> Merged:
    """Merge the adapters of single tasks.

    Args:
        bare: The backbone; the merged adapter is put on it.
        folders: Task → folder of its adapter.
        how: The kind of merge and its settings.
        seed: Seed of what `dare` drops.

    Raises:
        UserError: An adapter is missing or damaged.
    """
    updates, config = _read(bare, folders, how.weights)
    merged, lost, total = _merge(updates, how, seed)
    model = _apply(bare, merged, config, alike=_same_modules(updates, list(folders)))
    return Merged(model, max(u.rank for u in merged.values()), 1 - lost / total if total else 1.0)


def check_mergeable(peft_model: PeftModel) -> None:
    """Check that an adapter is all in A and B of linear layers: nothing else can be merged by adding up `B A`.

    Raises:
        UserError: It is not.
    """
    init = getattr(peft_model.peft_config["default"], "init_lora_weights", True)
    found = None
    if init not in _HARMLESS_INITS:
        found = f"`init_lora_weights: {init}`, which changes the backbone"
    for name, module in peft_model.named_modules():
        if isinstance(module, LoraLayer) and found is None:
            variant = getattr(module, "lora_variant", {})
            if variant:
                found = f"{type(next(iter(variant.values()))).__name__.removesuffix('Variant')} in {name}"
            elif not isinstance(module, Linear):
                found = f"LoRA on a layer of another kind ({type(module).__name__}) in {name}"
    for name, weight in peft_model.named_parameters():
        if found is None and weight.requires_grad and not re.search(r"\.lora_[AB]\.default\.weight$", name):
            found = f"a trained weight besides, {name}"
    if found is not None:
        raise UserError(
            "The single adapters cannot be merged",
            expected="plain LoRA on linear layers, whose whole update of a weight is B A",
            found=found,
            todo="remove the merges from `study.methods`, or use plain LoRA (`lora.options`, `lora.target_modules`)",
        )


def _read(bare: nn.Module, folders: Mapping[str, Path], weights: Mapping[str, float]) -> tuple[_Updates, LoraConfig]:
    """Load all adapters onto the backbone, read their updates, and take them off again."""
    names = {task: f"task{index}" for index, task in enumerate(folders)}  # a task's name may hold dots
    model: Any = None
    for task, folder in folders.items():
        check_adapter(folder)
        if model is None:
            model = PeftModel.from_pretrained(bare, str(folder), adapter_name=names[task])
        else:
            model.load_adapter(str(folder), adapter_name=names[task])
    found: _Updates = {}
    for module, layer in _lora_layers(model).items():
        found[module] = {
            task: Update(
                layer.lora_A[name].weight.detach().float().cpu(),
                weights[task] * layer.scaling[name] * layer.lora_B[name].weight.detach().float().cpu(),
            )
            for task, name in names.items()
            if name in layer.lora_A
        }
    config = model.peft_config[next(iter(names.values()))]
    model.unload()
    if hasattr(bare, "peft_config"):  # which PEFT 0.18 leaves on the bare model, and takes for adapters still there
        del bare.peft_config
    return found, config


def _lora_layers(model: Any) -> dict[str, Any]:
    """The adapted modules of a PEFT model, by their names in the backbone."""
    return {name: m for name, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}


def _merge(updates: _Updates, how: Merge, seed: int) -> tuple[dict[str, Update], float, float]:
    """Merge module by module; returns the squared lengths of what the rank lost, and of the whole, too."""
    if how.kind == "linear":
        return {name: merge_math.add(list(of.values()), how.scale) for name, of in updates.items()}, 0.0, 0.0
    assert how.density is not None
    least = _thresholds(updates, how.density) if how.kind == "ties" else {}
    merged, lost, total = {}, 0.0, 0.0
    for name, of in updates.items():
        if how.kind == "ties":
            whole = merge_math.elect([merge_math.trim(update.delta, least[task]) for task, update in of.items()])
        else:
            whole = sum(
                (merge_math.drop(u.delta, how.density, _generator(seed, task, name)) for task, u in of.items()),
                start=torch.zeros(()),
            )
        whole = how.scale * whole
        rank = min(how.rank or sum(update.rank for update in of.values()), *whole.shape)
        merged[name], lacking = merge_math.nearest(whole, rank)
        lost, total = lost + lacking, total + float(whole.square().sum())
    return merged, lost, total


def _thresholds(updates: _Updates, density: float) -> dict[str, float]:
    """How long a value must be to stay, task by task over all modules, as the paper trims."""
    tasks = dict.fromkeys(task for of in updates.values() for task in of)
    return {
        task: merge_math.threshold([of[task].delta for of in updates.values() if task in of], density) for task in tasks
    }


def _generator(seed: int, task: str, module: str) -> torch.Generator:
    """A draw for each task and module that depends on no order."""
    return torch.Generator().manual_seed((seed * 1_000_003 + zlib.crc32(f"{task}\n{module}".encode())) % 2**63)


def _same_modules(updates: _Updates, tasks: list[str]) -> bool:
    return all(len(of) == len(tasks) for of in updates.values())


def _apply(bare: nn.Module, merged: Mapping[str, Update], single: LoraConfig, alike: bool) -> PeftModel:
    """Put the merged adapter onto the backbone, with a scaling of 1."""
    usual = Counter(update.rank for update in merged.values()).most_common(1)[0][0]
    pattern = {f"^{re.escape(name)}": update.rank for name, update in merged.items() if update.rank != usual}
    # Where the single adapters are on different modules: all that any of them is on.
    where: dict[str, Any] = {"target_modules": list(merged), "layers_to_transform": None, "layers_pattern": None}
    config = replace(
        single,
        r=usual,
        lora_alpha=usual,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        use_rslora=False,
        lora_dropout=0.0,
        init_lora_weights=True,
        inference_mode=False,
        **({} if alike else where),
    )
    with torch.random.fork_rng(devices=[]):  # the drawn A is overwritten
        model = get_peft_model(bare, config)
    layers = _lora_layers(model)
    assert layers.keys() == merged.keys(), sorted(layers.keys() ^ merged.keys())[:4]
    with torch.no_grad():
        for name, update in merged.items():
            layer = layers[name]
            assert layer.scaling["default"] == 1.0, name
            layer.lora_A["default"].weight.copy_(update.a)
            layer.lora_B["default"].weight.copy_(update.b)
    assert isinstance(model, PeftModel)
    return model
