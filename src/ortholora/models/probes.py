"""Try a model out before it is trained: run a few tokens and look, where no attribute tells what a backbone does.

Positions must suffice. A language model must read from left to right. Texts of a packed row must not read each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ortholora.errors import UserError
from ortholora.models.adapted import AdaptedModel, evaluating
from ortholora.models.packed import PackingMode, attention_arguments, has_flash_attention, kernel_of
from ortholora.text.padding import pad_left
from ortholora.text.prompts import IGNORED

#: Relative difference allowed between what should be the same: other shapes and other kernels round otherwise.
#: Probe → (float32 and float64, half precision).
TOLERANCES = {
    "language model": (1e-3, 0.1),  # logits
    "packing mode": (1e-4, 5e-2),  # states
    "packed row": (1e-3, 5e-2),  # outputs, relative to what a change inside of the text does
}
#: Some models begin to count their positions a few places in: RoBERTa has 514 for 512 tokens.
_UNUSED_POSITIONS = 8


def _tolerance(probe: Literal["language model", "packing mode", "packed row"], dtype: torch.dtype) -> float:
    full, half = TOLERANCES[probe]
    return full if dtype in (torch.float32, torch.float64) else half


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


#: A batch of a language model, padded on the left → logits `[rows, columns with a target, V]`.
Logits = Callable[[dict[str, Tensor]], Tensor]


def check_language_model(model: AdaptedModel, logits: Logits) -> None:
    """A language model must read from left to right, and padding on the left must not change what it predicts.

    Args:
        model: The model.
        logits: How it predicts.

    Raises:
        UserError: A later token changes what an earlier position predicts, or tokens of padding on the left do.
    """

    def predicted(tokens: list[int], width: int = 1) -> Tensor:
        """Logits `[tokens - 1, V]` at every token but the last, in a row padded to a multiple of `width`."""
        device = next(model.parameters()).device
        row = {"input_ids": tokens, "labels": [IGNORED, *tokens[1:]]}
        return logits({key: value.to(device) for key, value in pad_left([row], 4, width).items()})[0].float()

    with evaluating(model), torch.no_grad():
        alone = predicted([5, 6, 7, 8, 5])
        _compare_logits(model, alone, predicted([5, 6, 7, 8, 9]), _BIDIRECTIONAL)
        _compare_logits(model, alone, predicted([5, 6, 7, 8, 5], width=8), _PADDING)


_BIDIRECTIONAL = (
    "it reads the answers that it should predict",
    "an encoder, such as BERT; give a causal language model",
)
_PADDING = (
    "padding changes what it predicts",
    "a model that takes no attention mask or no positions; give another one",
)


def _compare_logits(model: AdaptedModel, expected: Tensor, found: Tensor, problem: tuple[str, str]) -> None:
    difference = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    if difference > _tolerance("language model", next(model.backbone.parameters()).dtype):
        what, todo = problem
        raise UserError(
            f"The backbone cannot be trained as a language model: {what}",
            expected="a model that predicts each token from those before it, padded on the left or not",
            found=f"{type(model.peft_model.get_base_model()).__name__}, whose logits differ by {difference:.1%}",
            todo=todo,
        )


def find_packing_mode(encoder: nn.Module) -> PackingMode:
    """Find out how this backbone keeps texts of a packed row apart.

    Args:
        encoder: The backbone, with or without adapter. Its mode is restored.

    Raises:
        UserError: In every mode a text's states depend on what is packed beside it.
    """
    modes: Sequence[PackingMode] = ("lengths",) if has_flash_attention(encoder) else ("mask", "square", "positions")
    with evaluating(encoder):
        for mode in modes:
            if keeps_texts_apart(encoder, mode):
                return mode
    raise UserError(
        f"{type(encoder).__name__} cannot run padding-free batches",
        expected="a backbone that gives a text the same states in a packed row as alone",
        found=f"other states, with the attention {kernel_of(encoder)!r}",
        todo="use another `mixing.layout` (`auto` does)",
    )


def keeps_texts_apart(encoder: nn.Module, mode: PackingMode) -> bool:
    """Whether each of three texts has the same states packed in this mode as alone."""
    device = next(encoder.parameters()).device
    lengths = [5, 3, 6]
    tokens = torch.arange(sum(lengths), device=device)[None] % 4 + 5
    try:
        with torch.no_grad():
            separate = [encoder(input_ids=part).last_hidden_state[0] for part in tokens.split(lengths, dim=1)]
            arguments = attention_arguments(encoder, mode, lengths, device)
            packed = encoder(input_ids=tokens, **arguments).last_hidden_state[0]
            mixed = encoder(input_ids=tokens).last_hidden_state[0]
    except (TypeError, ValueError, RuntimeError, AttributeError):  # the forward does not know the arguments
        return False
    expected = torch.cat(separate).float()
    difference, control = (float((found.float() - expected).norm() / expected.norm()) for found in (packed, mixed))
    # The control is one long text: what does not stand out against it proves nothing.
    return difference < _tolerance("packing mode", packed.dtype) and difference < control / 4


def packed_rows_keep_texts_apart(run: Callable[[list[list[int]]], Tensor], dtype: torch.dtype) -> bool:
    """Change the first of two texts and see whether the second one's outputs change.

    If they do, no gradient of the row belongs to one task. This asks a trainer's own padding-free rows, whatever
    makes them.

    Args:
        run: From texts, each the ids of its tokens, packed into one row, to outputs `[S, ...]` of that row.
        dtype: Precision that the model computes in.

    Returns:
        Whether they stay as they are. The scale is what the same change inside of the text does.
    """
    first, second = [5, 6, 7, 5, 6], [6, 5, 7, 6, 5, 7]
    start = len(first)
    with torch.no_grad():
        before = run([first, second])[start:].float()
        other = run([[7, 5, 5, 6, 7], second])[start:].float()
        control = run([first, [5, *second[1:]]])[start:].float()
    leak, scale = (other - before).abs().max(), (control - before).abs().max()
    return bool(leak <= _tolerance("packed row", dtype) * scale)
