"""A saved run's model: a plain PEFT adapter folder, the heads beside it, and what belongs together.

```
adapter_config.json, adapter_model.safetensors   what PEFT writes and reads
heads.safetensors                                the task heads (an encoder's)
ortholora.json                                   tasks, labels, pooling, backbone
```
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ortholora.config.tasks.union import KINDS
from ortholora.errors import UserError, did_you_mean
from ortholora.models.adapted import AdaptedModel
from ortholora.models.backbone import load_backbone, portable_name
from ortholora.models.heads import HeadSpec
from ortholora.models.language import LanguageModel, LanguageSpec
from ortholora.models.multitask import MultiTaskModel, Pooling
from ortholora.models.trial import check_language_model, check_positions
from ortholora.text.prompts import longest_answered

METADATA = "ortholora.json"
HEADS = "heads.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What `ortholora.json` holds: all that is needed to rebuild the model around the adapter."""

    backbone: str
    revision: str | None
    dtype: str
    pooling: Pooling
    max_length: int
    tasks: tuple[HeadSpec, ...] | tuple[LanguageSpec, ...]

    @property
    def is_language(self) -> bool:
        """Whether the backbone is a language model."""
        return isinstance(self.tasks[0], LanguageSpec)

    def index_of(self, task: str) -> int:
        """Position of a task.

        Raises:
            UserError: There is no such task.
        """
        names = [spec.name for spec in self.tasks]
        if task not in names:
            raise UserError(
                f"Unknown task {task!r}",
                expected="one of " + ", ".join(names),
                found=task,
                todo=did_you_mean(task, names, "name one of these tasks with --task"),
            )
        return names.index(task)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**self.__dict__, "format": FORMAT, "tasks": [spec.to_json() for spec in self.tasks]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelCard:
        """Inverse of `to_json`."""
        fields = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        return cls(**{**fields, "tasks": tuple(_spec_from_json(t) for t in data["tasks"])})


def _spec_from_json(data: dict[str, Any]) -> Any:
    return (LanguageSpec if KINDS[data["kind"]].is_language else HeadSpec).from_json(data)


def save_model(folder: Path, model: AdaptedModel, card: ModelCard) -> None:
    """Write adapter, heads and metadata into `folder`.

    The adapter's configuration names the backbone by the card's name, not by a path of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _portable_base_name(model.peft_model, card.backbone):
        # The base has no new embeddings; asking PEFT to look for them would ask the hub.
        model.peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card, all placeholders
    if isinstance(model, MultiTaskModel):
        save_file(_head_state(model), folder / HEADS)
    (folder / METADATA).write_text(json.dumps(card.to_json(), indent=2) + "\n", encoding="utf-8")


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
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}" if isinstance(data, dict) else type(data).__name__)
        return ModelCard.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error, f"the metadata of a run, format {FORMAT}") from error


def load_model(folder: Path, *, trainable: bool = False) -> tuple[AdaptedModel, ModelCard]:
    """Rebuild the model of a run.

    Args:
        folder: The run.
        trainable: Load the adapter with gradients (to continue training).

    Raises:
        UserError: No run, damaged files, a missing backbone, or an adapter of another model.
    """
    card = load_card(folder)
    saved = _check_adapter(folder)
    bare = load_backbone(card.backbone, getattr(torch, card.dtype), card.revision, language=card.is_language)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of missing weights and goes on; below is an error
            peft_model = PeftModel.from_pretrained(bare, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _unfit(folder, card, " ".join(str(error).split())[:200]) from error
    expected = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    if odd := sorted(expected ^ saved):
        raise _unfit(folder, card, f"{len(odd)} matrices that only one of them has, such as {odd[0]}")
    model = wrap(peft_model, card)
    load_heads(folder, model)
    return model.eval(), card


def wrap(peft_model: PeftModel, card: ModelCard, dropout: float = 0.1, seed: int = 0) -> AdaptedModel:
    """Put what a card says around a PEFT model: a language model as it is, an encoder with a head for each task."""
    model: AdaptedModel
    if card.is_language:
        model = LanguageModel(peft_model, card.tasks)  # type: ignore[arg-type]
        check_language_model(model)
    else:
        model = MultiTaskModel(peft_model, card.tasks, card.pooling, dropout, seed)  # type: ignore[arg-type]
    check_positions(model, card.max_length, f"`max_length: {card.max_length}`")
    for spec in card.tasks:
        if isinstance(spec, LanguageSpec) and spec.writes:
            longest = longest_answered(card.max_length, spec.max_new_tokens)
            check_positions(model, longest, f"`max_new_tokens: {spec.max_new_tokens}` of task {spec.name!r}")
    return model


def load_weights(folder: Path, model: AdaptedModel) -> None:
    """Put the adapter and the heads saved in `folder` into a model that has both (resume, best model)."""
    from peft import set_peft_model_state_dict

    adapter = _read_tensors(folder / "adapter_model.safetensors")
    result: Any = set_peft_model_state_dict(model.peft_model, adapter)
    if result.unexpected_keys:
        raise _misfit(folder, f"unexpected weights such as {result.unexpected_keys[0]}")
    load_heads(folder, model)


def load_heads(folder: Path, model: AdaptedModel) -> None:
    """Put the heads saved in `folder` into the model; nothing for a language model.

    Raises:
        UserError: The file is damaged or holds the heads of other tasks.
    """
    if not isinstance(model, MultiTaskModel):
        return
    saved = _read_tensors(folder / HEADS)
    expected = _head_state(model)
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in expected.items()}:
        raise _misfit(folder, f"heads {sorted({k.rpartition('.')[0] for k in saved})}")
    for i, spec in enumerate(model.specs):
        linear = model.head(i).linear
        with torch.no_grad():
            linear.weight.copy_(saved[f"{spec.name}.weight"])
            linear.bias.copy_(saved[f"{spec.name}.bias"])


def _check_adapter(folder: Path) -> set[str]:
    """Read the adapter's files before PEFT does, which asks the hub for one that is missing.

    Returns:
        The names of the saved weights.
    """
    path = folder / "adapter_config.json"
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error, "the adapter's configuration, as PEFT wrote it") from error
    return set(_read_tensors(folder / "adapter_model.safetensors"))


def _head_state(model: MultiTaskModel) -> dict[str, Tensor]:
    state = {}
    for i, spec in enumerate(model.specs):
        linear = model.head(i).linear
        state[f"{spec.name}.weight"] = linear.weight.detach().cpu().contiguous()
        state[f"{spec.name}.bias"] = linear.bias.detach().cpu().contiguous()
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error, "a safetensors file") from error


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


def _damaged(path: Path, error: Exception, expected: str) -> UserError:
    found = f"{type(error).__name__}: {str(error)[:200]}"
    if isinstance(error, FileNotFoundError):
        found = "no such file"
    elif isinstance(error, KeyError):
        found = f"no key {error}"
    return UserError(
        f"{path} cannot be read",
        expected=expected,
        found=found,
        todo="restore the file, or train the run again",
    )


@contextmanager
def _portable_base_name(peft_model: PeftModel, backbone: str) -> Iterator[None]:
    config = peft_model.peft_config["default"]
    before = config.base_model_name_or_path
    config.base_model_name_or_path = portable_name(backbone)
    try:
        yield
    finally:
        config.base_model_name_or_path = before
