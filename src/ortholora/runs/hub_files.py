"""Which files of a folder go to a hub: those that are the model, and nothing of how and where it was trained.

`config.yaml`, `run.json` and `result.json` name folders of this machine, and the checkpoints are of no use to others:
they stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from safetensors import safe_open

from ortholora.config.bounds import ordinary
from ortholora.config.stored import Stored, damaged, read_stored
from ortholora.errors import UserError
from ortholora.models.backbone import hub_id
from ortholora.models.export import HEADS_CONTENT
from ortholora.models.heads import HeadSpec
from ortholora.models.loading import check_adapter, load_card, read_tensors, way_out
from ortholora.models.saving import ADAPTER, HEADS, METADATA
from ortholora.runs.folder import is_claimed
from ortholora.runs.page import PAGE_FILE
from ortholora.runs.record import RESULT_FILE

#: What transformers writes of a model and its tokenizer: weights, settings, vocabularies, chat templates.
_OF_A_MODEL = (".safetensors", ".json", ".txt", ".model", ".jinja")
_EXPORT_AGAIN = "write the folder anew with `ortholora export`"


class HubFiles(NamedTuple):
    """What is pushed of a folder.

    Attributes:
        folder: The folder.
        names: The files in it.
        what: What they are, in a few words.
        note: What the owner should know before others see the files; None where there is nothing.
    """

    folder: Path
    names: tuple[str, ...]
    what: str
    note: str | None = None


class _Index(Stored):
    """What `model.safetensors.index.json` must hold: the file of each weight."""

    weight_map: dict[str, str]


def files_to_push(folder: Path) -> HubFiles:
    """Find, and check, the files of a finished run, or of a model that `ortholora export` wrote.

    Args:
        folder: The folder.

    Raises:
        UserError: It is neither, the run is not finished, or a file is missing or damaged.
    """
    if not (folder / METADATA).exists() and _is_exported(folder):
        return _exported(folder)
    _check_finished(folder)
    card = load_card(folder)
    check_adapter(folder)
    names = ["adapter_config.json", ADAPTER, METADATA]
    if any(isinstance(task, HeadSpec) for task in card.tasks):
        read_tensors(folder / HEADS)
        names.append(HEADS)
    _check_page(folder, way_out(folder))
    note = None
    if hub_id(card.backbone) is None:
        note = (
            f"{METADATA} and adapter_config.json name the backbone as it was configured: {card.backbone}, a folder of "
            "this machine. Whoever loads the adapter needs that backbone, too."
        )
    return HubFiles(folder, (*names, PAGE_FILE), "adapter", note)


def _check_finished(folder: Path) -> None:
    """Refuse a run whose training, or whose last evaluation, is not done: its adapter is of a step on the way."""
    if not (is_claimed(folder) or (folder / METADATA).exists()) or (folder / RESULT_FILE).is_file():
        return
    raise UserError(
        f"{folder} is a run that is not finished",
        expected=f"a finished run: {RESULT_FILE} is written last",
        found=f"no {RESULT_FILE}",
        todo="start the same `ortholora train` or `compare` again, which goes on from the last checkpoint",
    )


def _check_page(folder: Path, todo: str) -> None:
    try:
        ordinary(folder / PAGE_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise damaged(folder / PAGE_FILE, "the model's page, a text in UTF-8", found, todo) from None


def _is_exported(folder: Path) -> bool:
    """Whether the folder holds a model, and a page that says that it came from here."""
    page = folder / PAGE_FILE
    ours = page.is_file() and b"ortho-lora" in page.read_bytes()
    return ours and (folder / "config.json").is_file()


def _exported(folder: Path) -> HubFiles:
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    names = [path.name for path in paths if path.suffix in _OF_A_MODEL]
    _check_weights(folder, {name for name in names if name.endswith(".safetensors")} - {HEADS})
    for name in names:
        if name.endswith(".json"):
            read_stored(folder / name, TypeAdapter(dict[str, Any]), "a JSON file of a model", _EXPORT_AGAIN)
    if HEADS_CONTENT in names:
        read_tensors(folder / HEADS)
    _check_page(folder, _EXPORT_AGAIN)
    return HubFiles(folder, (*names, PAGE_FILE), "model")


def _check_weights(folder: Path, names: set[str]) -> None:
    """Look at the heads of the files, which say how long they must be: a whole model need not fit into memory."""
    index = folder / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if index.is_file():
        wanted = set(
            read_stored(index, TypeAdapter(_Index), "the list of a model's files", _EXPORT_AGAIN).weight_map.values()
        )
    for name in sorted(wanted | names):
        try:
            with safe_open(ordinary(folder / name), framework="pt"):
                pass
        except Exception as error:  # a damaged head can name types and shapes that do not exist
            found = "no such file" if name not in names else f"{type(error).__name__}: {error}"
            raise damaged(folder / name, "a whole safetensors file", found[:200], _EXPORT_AGAIN) from None
