"""A task's metric on many bootstrap resamples at once, from how often each row was drawn.

A resample is a vector of counts (row r was drawn c_r times), so every metric is a weighted one:

- classification metrics need, per class, the hits, the targets and the predictions that were drawn:
  three products of an indicator matrix with the counts;
- Pearson needs weighted moments, in two passes (mean first), which is stable;
- Spearman is the Pearson correlation of mid-ranks. On the expanded rows the values equal to v have the mid-rank
  (number drawn below v) + (number drawn equal + 1) / 2, which is one cumulative sum over the sorted distinct
  values;
- metrics of written answers are means of the rows' scores.

Definitions, the degenerate ones included, are those of `ortholora.metrics.point`, row by expanded row.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ortholora.config.metric_names import ANSWER_METRICS, REGRESSION_METRICS
from ortholora.metrics.point import CONSTANT_SPREAD, score_mean, unit_scale


def resampled_metric(
    metric: str, targets: np.ndarray, predictions: np.ndarray, num_labels: int | None, counts: np.ndarray
) -> np.ndarray:
    """Compute a metric of several runs on several resamples of the same rows.

    Args:
        metric: Name of the metric.
        targets: Class indices, regression targets, or the weights of scores, `[rows]`.
        predictions: Predictions of each run, `[runs, rows]`.
        num_labels: Number of classes; `None` for regression.
        counts: How often each row was drawn, float, `[rows, resamples]`; every column has the same positive sum.

    Returns:
        The metric as a fraction, `[runs, resamples]`.
    """
    if metric in ANSWER_METRICS:
        return score_mean(metric, targets @ counts, predictions @ counts)
    if metric in REGRESSION_METRICS:
        return _correlations(metric, targets.astype(np.float64), predictions.astype(np.float64), counts)
    assert num_labels is not None
    drawn_targets = _per_class(targets, num_labels, None, counts)
    out = np.empty((len(predictions), counts.shape[1]))
    for run, predicted in enumerate(predictions):
        hits = _per_class(targets, num_labels, predicted == targets, counts)
        out[run] = _from_class_counts(metric, hits, drawn_targets, _per_class(predicted, num_labels, None, counts))
    return out


def _per_class(classes: np.ndarray, num_labels: int, keep: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """Number of drawn rows of each class, among those to keep: `[classes, resamples]`."""
    rows = np.arange(len(classes)) if keep is None else np.flatnonzero(keep)
    indicator = sparse.csr_array(
        (np.ones(len(rows)), (classes[rows].astype(np.int64), rows)), shape=(num_labels, len(classes))
    )
    return indicator @ counts


def _from_class_counts(metric: str, hits: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Classification metric from the per-class counts `[classes, resamples]`: `[resamples]`."""
    total = targets.sum(axis=0)
    if metric == "accuracy":
        return hits.sum(axis=0) / total
    if metric == "matthews":
        return _matthews(hits, targets, predicted)
    # F1 = 2 TP / (targets + predicted), 0 for a class that is neither.
    seen = targets + predicted
    f1 = 2 * hits / np.where(seen > 0, seen, 1)
    if metric == "f1":
        return f1[1]
    if metric == "accuracy_f1":
        return (hits.sum(axis=0) / total + f1[1]) / 2
    assert metric == "macro_f1", metric
    return f1.sum(axis=0) / (seen > 0).sum(axis=0)


def _matthews(hits: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Multi-class Matthews correlation, Gorodkin's R_K (2004), as in scikit-learn."""
    total = targets.sum(axis=0)
    # Counts are whole numbers below 2^26 here, so the squares are exact and a zero is a true zero.
    covariance = hits.sum(axis=0) * total - (targets * predicted).sum(axis=0)
    spread = (total**2 - (targets**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def _correlations(metric: str, targets: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    out = np.zeros((len(predictions), counts.shape[1]))
    if metric in ("pearson", "pearson_spearman"):
        centred = _centred(targets, counts)
        for run, predicted in enumerate(predictions):
            out[run] += _cosine(centred, _centred(predicted, counts), counts)
    if metric in ("spearman", "pearson_spearman"):
        ranked = _centred_ranks(targets, counts)
        for run, predicted in enumerate(predictions):
            out[run] += _cosine(ranked, _centred_ranks(predicted, counts), counts)
    return out / 2 if metric == "pearson_spearman" else out


def _centred(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values less their mean in each resample, `[rows, resamples]`; zero where they are constant."""
    values = unit_scale(values)
    total = counts.sum(axis=0)
    mean = values @ counts / total
    centred = values[:, None] - mean
    variance = np.einsum("rb,rb,rb->b", counts, centred, centred) / total
    centred[:, variance <= CONSTANT_SPREAD**2 * (mean**2 + variance)] = 0.0
    return centred


def _centred_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mid-ranks among the drawn rows less their mean (n + 1) / 2, `[rows, resamples]`."""
    distinct, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct)))
    equal = np.add.reduceat(counts[order], starts, axis=0)
    up_to = np.cumsum(equal, axis=0)
    # (below + (equal + 1) / 2) - (n + 1) / 2 with below = up_to - equal.
    return (up_to - (equal + up_to[-1]) / 2)[codes]


def _cosine(left: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weighted cosine of two centred `[rows, resamples]`, 0 where either has no spread: `[resamples]`."""
    weighted = counts * left
    product = np.einsum("rb,rb->b", weighted, right)
    norms = np.einsum("rb,rb->b", weighted, left) * np.einsum("rb,rb,rb->b", counts, right, right)
    ratio = product / np.sqrt(np.where(norms > 0, norms, 1))
    return np.where(norms > 0, np.clip(ratio, -1.0, 1.0), 0.0)
