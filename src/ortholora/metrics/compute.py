"""A metric by its name, from targets and predictions. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ortholora.errors import UserError
from ortholora.metrics.bootstrap import draw_rows, interval
from ortholora.metrics.table import METRICS, Metric, fitting

#: Resamples of an interval over rows, where more would take minutes; and rows that are drawn for one.
FEWEST, _MOST_DRAWN = 400, 200_000_000

# A package that is missing is said now, and not after hours of training.
for _metric in METRICS.values():
    _metric.implementation()


def compute(metric: str, targets: np.ndarray, predictions: np.ndarray, num_labels: int | None) -> float:
    """Compute one metric.

    Args:
        metric: Name of the metric.
        targets: Class indices, regression targets, or the weights of scores, `[rows]`.
        predictions: Predicted class indices or values, or scores times their weights, `[rows]`.
        num_labels: Number of classes; `None` for regression and scores. F1 takes class 1 of two as the positive one.

    Returns:
        The metric as a fraction: 1 is perfect (not per cent).

    Raises:
        UserError: There is no row, a value is NaN or infinite, or the metric does not fit the task.
    """
    entry = METRICS[metric]
    targets, predictions = _checked(entry, targets, predictions, num_labels)
    return entry.implementation().value(targets, predictions, num_labels)


def resampled(
    metric: str, targets: np.ndarray, predictions: np.ndarray, num_labels: int | None, counts: np.ndarray
) -> np.ndarray:
    """Compute a metric of several runs on several resamples of the same rows.

    A resample is a vector of counts: row r was drawn c_r times. So every metric is a weighted one; it is that of the
    rows, each repeated as often as it was drawn.

    Args:
        metric: Name of the metric.
        targets: Class indices, regression targets, or the weights of scores, `[rows]`.
        predictions: Predictions of each run, `[runs, rows]`.
        num_labels: Number of classes; `None` for regression and scores.
        counts: How often each row was drawn, float, `[rows, resamples]`; every column has the same positive sum.

    Returns:
        The metric as a fraction, `[runs, resamples]`.
    """
    return METRICS[metric].implementation().resampled(targets, predictions, num_labels, counts)


def row_interval(
    metric: str, targets: np.ndarray, predictions: np.ndarray, num_labels: int | None, resamples: int
) -> list[float]:
    """The 95 % percentile bootstrap interval of a metric over the rows it is computed of, always from the same draws.

    Args:
        metric: Name of the metric.
        targets: Class indices, regression targets, or the weights of scores, `[rows]`.
        predictions: Predicted class indices or values, or scores times their weights, `[rows]`.
        num_labels: Number of classes; `None` for regression and scores.
        resamples: Resamples to draw; of very many rows fewer, at least `FEWEST`.

    Returns:
        `[low, high]`, fractions.
    """
    resamples = min(resamples, max(FEWEST, _MOST_DRAWN // len(targets)))
    drawn = draw_rows(np.random.default_rng(0), len(targets), resamples)
    values = [resampled(metric, targets, predictions[None], num_labels, counts) for counts in drawn]
    return interval(np.concatenate(values, axis=1))


def details(targets: np.ndarray, predictions: np.ndarray, num_labels: int | None) -> dict[str, float]:
    """Compute every metric that fits the task.

    Args:
        targets: Class indices or regression targets, `[rows]`.
        predictions: Predicted class indices or values, `[rows]`.
        num_labels: Number of classes; `None` for regression.

    Returns:
        Name of the metric → fraction. F1 of the positive class is there for two labels only.
    """
    names = fitting("values" if num_labels is None else "classes")
    return {
        name: compute(name, targets, predictions, num_labels)
        for name in names
        if num_labels == 2 or not METRICS[name].two_labels
    }


def can_score(metric: str, wanted: Sequence[str]) -> bool:
    """Whether generated answers can be scored against these by the metric."""
    try:
        METRICS[metric].implementation().check(wanted)
    except UserError:
        return False
    return True


def _checked(
    metric: Metric, targets: np.ndarray, predictions: np.ndarray, num_labels: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays as int64 (classes) or float64 (values), or say what is wrong with them."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    assert targets.ndim == predictions.ndim == 1, (targets.shape, predictions.shape)
    assert len(targets) == len(predictions), (len(targets), len(predictions))
    if len(targets) == 0:
        raise UserError(
            f"metric `{metric.name}` has nothing to compute from",
            expected="at least one evaluation row",
            found="0 rows",
            todo="give the task a `dev` file with rows, or a larger `max_dev_rows`",
        )
    for what, values in (("targets", targets), ("predictions", predictions)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise UserError(
                f"metric `{metric.name}`: the {what} are not finite",
                expected="finite numbers",
                found=f"{bad} of {len(values)} rows are NaN or infinite",
                todo="lower the learning rate, or use `dtype: float32`"
                if what == "predictions"
                else "remove the rows whose label is not a number",
            )
    if metric.compares != "classes":
        return targets.astype(np.float64), predictions.astype(np.float64)
    assert num_labels is not None, "a classification metric needs the number of labels"
    if metric.two_labels and num_labels != 2:
        raise UserError(
            f"metric `{metric.name}` needs a positive class",
            expected="a task with two labels, the second of which is the positive one",
            found=f"{num_labels} labels",
            todo="use `macro_f1` or `accuracy`",
        )
    for values in (targets, predictions):
        assert values.min() >= 0, values.min()
        assert values.max() < num_labels, (values.max(), num_labels)
    return targets.astype(np.int64), predictions.astype(np.int64)
