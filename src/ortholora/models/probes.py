"""Try a model out before it is trained: its positions must suffice; a language model must read from left to right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel, evaluating
from ortholora.models.language import LanguageModel
from ortholora.text.padding import pad_left
from ortholora.text.prompts import IGNORED

#: Relative difference allowed between logits that should be the same: other shapes round otherwise.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 0.1
#: Some models begin to count their positions a few places in: RoBERTa has 514 for 512 tokens.
_UNUSED_POSITIONS = 8


def check_positions(model: AdaptedModel, longest: int, settings: str) -> None:
    """Run a row of `longest` tokens, where the model's configuration leaves it in doubt that it can.

    Rotary positions go on for ever; learned ones end, on an accelerator with an assertion that ends the process.

    Args:
        model: The model.
        longest: Tokens of the longest row that it may have to read.
        settings: What makes rows so long, for the message.

    Raises:
        UserError: The model has no positions for so many tokens.
    """
    backbone: Any = model.backbone
    config = model.peft_model.get_base_model().config
    known = getattr(config, "max_position_embeddings", None)
    rotary = any(getattr(config, key, None) is not None for key in ("rope_parameters", "rope_theta"))
    if known is None or rotary or longest <= known - _UNUSED_POSITIONS:
        return
    tokens = torch.arange(longest, device=next(model.parameters()).device)[None] % 4 + 5
    try:
        with evaluating(model), torch.no_grad():
            backbone(input_ids=tokens)
    except (IndexError, RuntimeError) as error:
        raise UserError(
            f"{settings}: rows of up to {longest} tokens are longer than what the backbone can read",
            expected=f"at most the positions that it learned ({known}, according to its configuration)",
            found=f"{type(backbone).__name__}, which fails on such a row ({str(error).splitlines()[0]})",
            todo="lower the setting, or use a backbone for longer texts",
        ) from error


def check_language_model(model: LanguageModel) -> None:
    """Run a few tokens through a model.

    Raises:
        UserError: A later token changes what an earlier position predicts, or tokens of padding on the left do.
    """
    with evaluating(model), torch.no_grad():
        alone = _logits(model, [5, 6, 7, 8, 5])
        _compare(model, alone, _logits(model, [5, 6, 7, 8, 9]), _BIDIRECTIONAL)
        _compare(model, alone, _logits(model, [5, 6, 7, 8, 5], width=8), _PADDING)


_BIDIRECTIONAL = (
    "it reads the answers that it should predict",
    "an encoder, such as BERT; give a causal language model",
)
_PADDING = (
    "padding changes what it predicts",
    "a model that takes no attention mask or no positions; give another one",
)


def _logits(model: LanguageModel, tokens: list[int], width: int = 1) -> Tensor:
    """Logits `[tokens - 1, V]` at every token but the last, in a row padded to a multiple of `width`."""
    device = next(model.parameters()).device
    row = {"input_ids": tokens, "labels": [IGNORED, *tokens[1:]]}
    inputs = {key: value.to(device) for key, value in pad_left([row], 4, width).items()}
    return model.logits(inputs)[0].float()


def _compare(model: LanguageModel, expected: Tensor, found: Tensor, problem: tuple[str, str]) -> None:
    difference = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    dtype = next(model.backbone.parameters()).dtype
    if difference > _TOLERANCE.get(dtype, _HALF_TOLERANCE):
        what, todo = problem
        raise UserError(
            f"The backbone cannot be trained as a language model: {what}",
            expected="a model that predicts each token from those before it, padded on the left or not",
            found=f"{type(model.decoder.get_base_model()).__name__}, whose logits differ by {difference:.1%}",
            todo=todo,
        )
