"""Start a training from a finished run: its adapter, and the heads of the tasks that it has in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel
from ortholora.models.card import ModelCard
from ortholora.models.heads import HeadSpec
from ortholora.models.kinds import KINDS
from ortholora.models.loading import check_adapter, load_card, read_tensors
from ortholora.models.saving import ADAPTER, HEADS

#: What decides, beside the weights, what an adapter computes; dropout and the like may change.
_DECIDES = ("lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights", "lora_bias")


def digest_of(run: Path) -> str:
    """SHA-256 of the weights that a training takes from a run: adapter and heads.

    Raises:
        UserError: There is no such run, or its files are missing or damaged.
    """
    load_card(run)
    check_adapter(run)
    digest = hashlib.sha256()
    for path in (run / ADAPTER, run / HEADS):
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def start_from(run: Path, model: AdaptedModel, card: ModelCard) -> None:
    """Put a run's adapter into a model, and its heads into those of the tasks of the same name; others stay new.

    Args:
        run: The folder of a finished run.
        model: The new model.
        card: Of the new model.

    Raises:
        UserError: No run, or one of another backbone, with another adapter, or with other labels of a task.
    """
    there = load_card(run)
    _check_backbone(run, there, card)
    names = check_adapter(run)
    weights = read_tensors(run / ADAPTER)
    _check_adapter(run, {name: weights[name] for name in names}, model)
    specs = {spec.name: spec for spec in there.tasks}
    for spec in card.tasks:
        if spec.name in specs and (specs[spec.name].kind, specs[spec.name].labels) != (spec.kind, spec.labels):
            raise UserError(
                f"init_from: task {spec.name!r} is another one in {run}",
                expected=f"a task of kind {spec.kind} with {_shown(spec.labels)}",
                found=f"{specs[spec.name].kind} with {_shown(specs[spec.name].labels)}",
                todo="give the new task another name: it then gets a head of its own",
            )
    set_peft_model_state_dict(model.peft_model, weights)
    _take_heads(run, model, specs)


def _take_heads(run: Path, model: AdaptedModel, there: Mapping[str, Any]) -> None:
    heads = model.extra_weights()
    if not heads:
        return
    saved = read_tensors(run / HEADS)
    with torch.no_grad():
        for spec in model.specs:
            if spec.name in there:
                weight, bias = (saved[f"{spec.name}.{part}"] for part in ("weight", "bias"))
                weight, bias = _in_units_of(there[spec.name], spec, weight, bias)
                heads[f"{spec.name}.weight"].copy_(weight)
                heads[f"{spec.name}.bias"].copy_(bias)


def _in_units_of(old: HeadSpec, new: HeadSpec, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A head that predicts the same numbers with the mean and the deviation of the new training rows."""
    scale = old.scale / new.scale
    return weight * scale, bias * scale + (old.shift - new.shift) / new.scale


def _check_backbone(run: Path, there: ModelCard, card: ModelCard) -> None:
    keys = ("backbone", "revision", "pooling")
    differing = [key for key in keys if getattr(there, key) != getattr(card, key)]
    model = {key: KINDS[each.tasks[0].kind].model.task_type for key, each in {"there": there, "here": card}.items()}
    if differing or model["there"] != model["here"]:
        shown = [f"{key}: {getattr(there, key)}" for key in differing] or [f"tasks of a {model['there']} model"]
        wanted = [f"{key}: {getattr(card, key)}" for key in differing] or [f"tasks of a {model['here']} model"]
        raise UserError(
            f"init_from: {run} is a run of another model",
            expected="an adapter of " + ", ".join(wanted),
            found=", ".join(shown),
            todo="set these as they were there, or start from another run",
        )


def _check_adapter(run: Path, weights: Mapping[str, Tensor], model: AdaptedModel) -> None:
    """The same rank, targets and scaling."""
    stored = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    defaults, own = LoraConfig(), cast("LoraConfig", model.peft_model.peft_config["default"])
    old = {key: stored.get(key, getattr(defaults, key, None)) for key in _DECIDES}
    new = {key: getattr(own, key, None) for key in _DECIDES}
    keys = [key for key in _DECIDES if old[key] != new[key]]
    here = get_peft_model_state_dict(model.peft_model, save_embedding_layers=False)
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (weights, here)]
    odd = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    if not keys and not odd:
        return
    found = [f"{key} = {old[key]!r} there, {new[key]!r} here" for key in keys]
    if stored.get("r") != own.r:
        found.append(f"r = {stored.get('r')} there, {own.r} here")
    elif odd:
        parts = [str(each.get(odd[0], "none")) for each in shapes]
        found.append(f"{len(odd)} other matrices, such as {odd[0]}: {parts[0]} there, {parts[1]} here")
    raise UserError(
        f"init_from: the adapter of {run} is not the one that `lora` describes",
        expected="the rank, the modules and the scaling of the adapter that training starts from",
        found="; ".join(found),
        todo=f"copy `lora` from {run / 'config.yaml'}, or start from another run",
    )


def _shown(labels: tuple[str, ...] | None) -> str:
    return "no labels" if labels is None else f"the labels {', '.join(labels[:8])}" + ", …" * (len(labels) > 8)
