"""Names of the metrics, and the kinds of task that each fits."""

from __future__ import annotations

from typing import Literal

MetricName = Literal[
    "accuracy",
    "f1",
    "macro_f1",
    "matthews",
    "accuracy_f1",
    "pearson",
    "spearman",
    "pearson_spearman",
    "inverse_perplexity",
    "exact_match",
    "rouge_l",
]
#: Metrics of a written answer, from a score for every row.
ANSWER_METRICS = frozenset({"inverse_perplexity", "exact_match", "rouge_l"})
#: Metrics that make sense for a regression task; all others are for classification.
REGRESSION_METRICS = frozenset({"pearson", "spearman", "pearson_spearman"})
#: Metrics that need exactly two labels, the second of which is the positive one.
BINARY_METRICS = frozenset({"f1", "accuracy_f1"})
_CLASS_METRICS = ("accuracy", "f1", "macro_f1", "matthews", "accuracy_f1")


def fitting(kind: str, has_labels: bool) -> tuple[str, ...]:
    """Names of the metrics that fit a task.

    Args:
        kind: The task's kind.
        has_labels: Whether its configuration lists `labels`: the closed set of answers of a language model.
    """
    if kind == "classification":
        return _CLASS_METRICS
    if kind == "regression":
        return tuple(sorted(REGRESSION_METRICS))
    return (*(_CLASS_METRICS if has_labels else ()), *sorted(ANSWER_METRICS))
