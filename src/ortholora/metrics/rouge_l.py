"""ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, stemmed; the mean over rows.

Computed by the package `rouge-score`, as most published figures are.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

import numpy as np

from ortholora.errors import UserError
from ortholora.metrics.answers import mean_score, resampled_mean


def check(wanted: Sequence[str]) -> None:
    """Check that the package is there, and that it can read the answers wanted.

    Raises:
        UserError: It is not, or an answer has no Latin letter or digit.
    """
    if importlib.util.find_spec("rouge_score") is None:
        raise UserError(
            "metric `rouge_l` cannot be computed",
            expected="the package rouge-score",
            found="no such package in this environment",
            todo='pip install "ortholora[lm]", or use the metric inverse_perplexity',
        )
    unread = next((text for text in wanted if text.strip() and not re.search("[a-z0-9]", text.lower())), None)
    if unread is not None:
        raise UserError(
            "metric `rouge_l` cannot read these answers",
            expected="answers in Latin letters or digits: rouge-score sees nothing else",
            found=repr(unread[:80]),
            todo="use the metric exact_match or inverse_perplexity",
        )


def score_rows(wanted: Sequence[str], written: Sequence[str]) -> np.ndarray:
    """ROUGE-L of each answer, `[rows]`.

    Raises:
        UserError: See `check`.
    """
    check(wanted)
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.asarray([scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(wanted, written, strict=True)])


def value(targets: np.ndarray, predictions: np.ndarray, num_labels: None) -> float:
    """The metric of rows' weights and weighted scores."""
    return mean_score(targets, predictions)


def resampled(targets: np.ndarray, predictions: np.ndarray, num_labels: None, counts: np.ndarray) -> np.ndarray:
    """The metric of runs on resamples, `[runs, resamples]`."""
    return resampled_mean(targets, predictions, counts)
