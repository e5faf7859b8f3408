"""What a rule may answer, and what its mistakes are called."""

from __future__ import annotations

import torch
from torch import Tensor

from ortholora.errors import RuleError


def checked_answer(answer: object, rule: object, gram: Tensor, tasks: int, width: int) -> Tensor:
    """The answer as float32 where the Gram is: weights `[N, S]` or combinations `[N, T, S]`.

    Args:
        answer: What the rule returned; any real numbers are taken.
        rule: For the message.
        gram: What it was given, `[N, ...]`.
        tasks: T.
        width: S.

    Raises:
        RuleError: It is no tensor, of complex numbers, or of another shape.
    """
    blocks = len(gram)
    fits = isinstance(answer, Tensor) and not answer.is_complex()
    if not fits or answer.shape not in ((blocks, width), (blocks, tasks, width)):  # type: ignore[attr-defined]
        raise RuleError(
            f"The rule {rule!r} returned something that are no weights",
            expected=f"a tensor of weights [{blocks}, {width}] or combinations [{blocks}, {tasks}, {width}]",
            found=_shown(answer),
            todo="correct the rule; docs/rules.md shows one",
        )
    assert isinstance(answer, Tensor)
    return answer.detach().to(gram.device, torch.float32)


def _shown(answer: object) -> str:
    if isinstance(answer, Tensor):
        return f"{str(answer.dtype).removeprefix('torch.')} of shape {list(answer.shape)}"
    return "None" if answer is None else f"a {type(answer).__name__}"
