"""The metric of a task, from its targets and predictions. Torch-free.

The definitions are scikit-learn's and scipy's. Where those are undefined and only warn, we define:

- F1 of a class that is neither a target nor predicted: 0 (and macro F1 leaves such a class out);
- Matthews with only one class among the targets or among the predictions: 0;
- a correlation with constant predictions (or targets): 0. A model that says the same for every row
  knows nothing about the order of the rows.

Metrics of written answers come from a score for every row: the mean of the scores (`exact_match`, `rouge_l`), or
exp(−mean) of the losses (`inverse_perplexity`), weighted.

`study/resampled.py` computes the same numbers for many bootstrap resamples at once and is tested against this
module; change them together.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ortholora.config.metric_names import ANSWER_METRICS, REGRESSION_METRICS, MetricName
from ortholora.errors import UserError

#: Spread (standard deviation over root mean square) up to which values count as constant: float64 rounding.
CONSTANT_SPREAD = 1e-11


def compute(metric: MetricName, targets: np.ndarray, predictions: np.ndarray, num_labels: int | None) -> float:
    """Compute one metric.

    Args:
        metric: Name of the metric; `accuracy_f1` and `pearson_spearman` are the means of the two.
        targets: Class indices, regression targets, or the weights of scores, `[rows]`.
        predictions: Predicted class indices or values, or scores times their weights, `[rows]`.
        num_labels: Number of classes; `None` for regression and scores. F1 takes class 1 of two as the positive one.

    Returns:
        The metric as a fraction: 1 is perfect (not per cent).

    Raises:
        UserError: There is no row, a value is NaN or infinite, or the metric does not fit the task.
    """
    targets, predictions = _checked(metric, targets, predictions, num_labels)
    if metric in ANSWER_METRICS:
        return float(score_mean(metric, targets.sum(), predictions.sum()))
    if metric == "accuracy_f1":
        return (_one("accuracy", targets, predictions) + _one("f1", targets, predictions)) / 2
    if metric == "pearson_spearman":
        return (_one("pearson", targets, predictions) + _one("spearman", targets, predictions)) / 2
    return _one(metric, targets, predictions)


def score_mean(metric: str, weight: np.ndarray, total: np.ndarray) -> np.ndarray:
    """A metric of written answers, from the sums of the weights and of the weighted scores (arrays of any shape)."""
    mean = total / weight
    return np.exp(-mean) if metric == "inverse_perplexity" else mean


def details(
    kind: str,
    targets: np.ndarray,
    predictions: np.ndarray,
    num_labels: int | None,
) -> dict[str, float]:
    """Compute every metric that fits the task.

    Args:
        kind: `"classification"` or `"regression"`.
        targets: Class indices or regression targets, `[rows]`.
        predictions: Predicted class indices or values, `[rows]`.
        num_labels: Number of classes; `None` for regression.

    Returns:
        Name of the metric → fraction. F1 of the positive class is there for two labels only.
    """
    names: tuple[MetricName, ...] = ("accuracy", "macro_f1", "matthews")
    if kind == "regression":
        names = ("pearson", "spearman", "pearson_spearman")
    elif num_labels == 2:
        names = ("accuracy", "f1", "accuracy_f1", "macro_f1", "matthews")
    return {name: compute(name, targets, predictions, num_labels) for name in names}


def _checked(
    metric: str, targets: np.ndarray, predictions: np.ndarray, num_labels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays as int64 (classes) or float64 (values), or say what is wrong with them."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    assert targets.ndim == predictions.ndim == 1, (targets.shape, predictions.shape)
    assert len(targets) == len(predictions), (len(targets), len(predictions))
    if len(targets) == 0:
        raise UserError(
            f"metric `{metric}` has nothing to compute from",
            expected="at least one evaluation row",
            found="0 rows",
            todo="give the task a `dev` file with rows, or a larger `max_dev_rows`",
        )
    for what, values in (("targets", targets), ("predictions", predictions)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise UserError(
                f"metric `{metric}`: the {what} are not finite",
                expected="finite numbers",
                found=f"{bad} of {len(values)} rows are NaN or infinite",
                todo="lower the learning rate, or use `dtype: float32`"
                if what == "predictions"
                else "remove the rows whose label is not a number",
            )
    if metric in REGRESSION_METRICS or metric in ANSWER_METRICS:
        return targets.astype(np.float64), predictions.astype(np.float64)
    assert num_labels is not None, "a classification metric needs the number of labels"
    if metric in ("f1", "accuracy_f1") and num_labels != 2:
        raise UserError(
            f"metric `{metric}` needs a positive class",
            expected="a task with two labels, the second of which is the positive one",
            found=f"{num_labels} labels",
            todo="use `macro_f1` or `accuracy`",
        )
    for values in (targets, predictions):
        assert values.min() >= 0, values.min()
        assert values.max() < num_labels, (values.max(), num_labels)
    return targets.astype(np.int64), predictions.astype(np.int64)


def _one(metric: str, targets: np.ndarray, predictions: np.ndarray) -> float:
    if metric == "accuracy":
        return float(accuracy_score(targets, predictions))
    if metric == "f1":
        return float(f1_score(targets, predictions, labels=[0, 1], pos_label=1, zero_division=0))
    if metric == "macro_f1":
        return float(f1_score(targets, predictions, average="macro", zero_division=0))
    if metric == "matthews":
        # scikit-learn warns when there is only one class; the answer is 0 by definition.
        one_class = np.ptp(targets) == 0 or np.ptp(predictions) == 0
        return 0.0 if one_class else float(matthews_corrcoef(targets, predictions))
    if metric == "pearson":
        # Scaled to at most 1, so that squares cannot overflow; a correlation does not see the scale.
        targets, predictions = unit_scale(targets), unit_scale(predictions)
        if _is_constant(targets) or _is_constant(predictions):
            return 0.0
        return float(pearsonr(targets, predictions).statistic)
    assert metric == "spearman", metric
    if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(spearmanr(targets, predictions).statistic)


def unit_scale(values: np.ndarray) -> np.ndarray:
    """Divide by the largest magnitude, `[rows]` → `[rows]` within -1 and 1; all zeros stay."""
    largest = float(np.abs(values).max())
    return values / largest if largest > 0 else values


def _is_constant(values: np.ndarray) -> bool:
    mean, variance = float(values.mean()), float(values.var())
    return variance <= CONSTANT_SPREAD**2 * (mean**2 + variance)
