"""Scores of generated answers, row by row."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

import numpy as np

from ortholora.errors import UserError


def exact_match(wanted: Sequence[str], written: Sequence[str]) -> np.ndarray:
    """1 where the answers are the same but for spaces at the ends and between words, `[rows]`."""
    pairs = zip(wanted, written, strict=True)
    return np.asarray([float(right.split() == answer.split()) for right, answer in pairs])


def rouge_l(wanted: Sequence[str], written: Sequence[str]) -> np.ndarray:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, stemmed, `[rows]`.

    Computed by the package `rouge-score`, as most published figures are.

    Raises:
        UserError: The package is not installed, or an answer has no Latin letter or digit.
    """
    check_rouge(wanted)
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.asarray([scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(wanted, written, strict=True)])


def can_rouge(wanted: Sequence[str]) -> bool:
    """Whether the package is there, and reads all of these answers."""
    return _has_rouge() and _unreadable(wanted) is None


def check_rouge(wanted: Sequence[str]) -> None:
    """Check that the package is there, and that it can read the answers wanted.

    Raises:
        UserError: It is not, or it cannot.
    """
    if not _has_rouge():
        raise UserError(
            "metric `rouge_l` cannot be computed",
            expected="the package rouge-score",
            found="no such package in this environment",
            todo='pip install "ortholora[lm]", or use the metric inverse_perplexity',
        )
    unread = _unreadable(wanted)
    if unread is not None:
        raise UserError(
            "metric `rouge_l` cannot read these answers",
            expected="answers in Latin letters or digits: rouge-score sees nothing else",
            found=repr(unread[:80]),
            todo="use the metric exact_match or inverse_perplexity",
        )


def _has_rouge() -> bool:
    return importlib.util.find_spec("rouge_score") is not None


def _unreadable(answers: Sequence[str]) -> str | None:
    """The first answer in which rouge-score sees no word."""
    return next((text for text in answers if text.strip() and not re.search("[a-z0-9]", text.lower())), None)
