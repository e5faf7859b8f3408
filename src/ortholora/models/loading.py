"""A saved run's folder → its model; see `models/saving.py` for what is in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from ortholora.config.bounds import ordinary
from ortholora.config.stored import damaged, read_stored
from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel
from ortholora.models.adapter import AdapterFile
from ortholora.models.build import wrap
from ortholora.models.card import FORMAT, ModelCard
from ortholora.models.kinds import card_file, card_from_file, model_of
from ortholora.models.saving import ADAPTER, HEADS, METADATA


def load_card(folder: Path) -> ModelCard:
    """Read `ortholora.json`.

    Raises:
        UserError: The folder is not one of ours, or the file is damaged.
    """
    path = folder / METADATA
    if not path.is_file():
        inside = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else []
        found = f"a folder with {', '.join(inside) or 'nothing in it'}"
        raise UserError(
            f"{folder} is no Ortho-LoRA run",
            expected=f"a folder with adapter_config.json and {METADATA}",
            found=found if folder.is_dir() else "a file" if folder.exists() else "no such folder",
            todo="give the --out folder of `ortholora train`, or a run inside the --out of `ortholora compare`",
        )
    expected = f"the metadata of a run, format {FORMAT}"
    content = read_stored(path, card_file(), expected, way_out(folder))
    try:
        return card_from_file(content)
    except ValueError as error:
        raise damaged(path, expected, str(error), way_out(folder)) from None


def check_files(folder: Path) -> None:
    """Check what a run saved of its model, as far as it is there: somebody may have deleted it to make room.

    Raises:
        UserError: A file is damaged.
    """
    if (folder / METADATA).exists():
        load_card(folder)
    if (folder / "adapter_config.json").exists():
        _check_configuration(folder)
    for path in (folder / ADAPTER, folder / HEADS):
        if path.exists():
            read_tensors(path)


def load_model(folder: Path, *, trainable: bool = False) -> tuple[AdaptedModel, ModelCard]:
    """Rebuild the model of a run.

    Args:
        folder: The run.
        trainable: Load the adapter with gradients (to continue training).

    Raises:
        UserError: No run, damaged files, a missing backbone, or an adapter of another model.
    """
    card = load_card(folder)
    saved = check_adapter(folder)
    bare = model_of(card).load_backbone(card.backbone, getattr(torch, card.dtype), card.revision)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of missing weights and goes on; below is an error
            peft_model = PeftModel.from_pretrained(bare, str(folder), is_trainable=trainable)
    except Exception as error:  # PEFT fails in dozens of ways over its configuration and the weights
        raise _unfit(folder, card, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    expected = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    if odd := sorted(expected ^ saved):
        raise _unfit(folder, card, f"{len(odd)} matrices that only one of them has, such as {odd[0]}")
    model = wrap(peft_model, card)
    load_heads(folder, model)
    return model.eval(), card


def load_weights(folder: Path, model: AdaptedModel) -> None:
    """Put the adapter and the heads saved in `folder` into a model that has both (resume, best model)."""
    from peft import set_peft_model_state_dict

    adapter = read_tensors(folder / ADAPTER)
    result: Any = set_peft_model_state_dict(model.peft_model, adapter)
    if result.unexpected_keys:
        raise _misfit(folder, f"unexpected weights such as {result.unexpected_keys[0]}")
    load_heads(folder, model)


def load_heads(
    folder: Path | Sequence[Path], model: AdaptedModel, copy: Callable[[Tensor, Tensor], object] = Tensor.copy_
) -> None:
    """Put the heads saved in `folder` into the model; nothing for a model without.

    Args:
        folder: The folder of a run; or several, each with the heads of tasks of its own.
        model: The model.
        copy: Puts a saved weight, the second, into one of the model's.

    Raises:
        UserError: The file is damaged or holds the heads of other tasks.
    """
    expected = model.extra_weights()
    if not expected:
        return
    folders = [folder] if isinstance(folder, Path) else folder
    saved = {name: weight for each in folders for name, weight in read_tensors(each / HEADS).items()}
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in expected.items()}:
        raise _misfit(folders[0], f"heads {sorted({k.rpartition('.')[0] for k in saved})}")
    with torch.no_grad():
        for name, weight in expected.items():
            copy(weight, saved[name])


def check_adapter(folder: Path) -> set[str]:
    """Read the adapter's files before PEFT does, which asks the hub for one that is missing.

    Returns:
        The names of the saved weights.

    Raises:
        UserError: One is missing or damaged.
    """
    _check_configuration(folder)
    return set(read_tensors(folder / ADAPTER))


def _check_configuration(folder: Path) -> None:
    read_stored(
        folder / "adapter_config.json",
        TypeAdapter(AdapterFile),
        "the adapter's configuration, as PEFT wrote it",
        way_out(folder),
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of weights.

    Raises:
        UserError: It is missing, damaged, or holds values that are no numbers.
    """
    expected = "a safetensors file of finite numbers"
    try:
        tensors = load_file(ordinary(path))
    except Exception as error:  # a damaged header can name types and shapes that do not exist
        found = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise damaged(path, expected, found[:200], way_out(path.parent)) from error
    odd = next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)
    if odd is not None:
        raise damaged(path, expected, f"other values in `{odd}`", way_out(path.parent))
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _misfit(folder: Path, found: str) -> UserError:
    return UserError(
        f"{folder} holds the weights of another model",
        expected="weights of the tasks and the adapter of this configuration",
        found=found,
        todo="use the configuration that the folder was made with, or another --out",
    )


def _unfit(folder: Path, card: ModelCard, found: str) -> UserError:
    return UserError(
        f"The adapter in {folder} does not fit the backbone {card.backbone}",
        expected="an adapter that was trained on this backbone",
        found=found,
        todo="give the backbone that the run was trained with (pin `revision` if it has changed), or train again",
    )


def way_out(folder: Path) -> str:
    """What to do about a damaged file of a run: its checkpoints, where there are some, make it anew."""
    if not any((folder / "checkpoints").glob("checkpoint-*")):
        return "restore the file, or train the run again"
    return (
        f"restore the file; or delete only {folder / 'result.json'} and start the same `train` or `compare` again: it "
        "goes on from the last checkpoint and writes the file anew"
    )
