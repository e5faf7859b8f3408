"""The metrics there are, by name, and what each needs. Plain Python: the configuration must not wait for numpy.

A metric is one file of its name in this folder, and one line of `METRICS`. The file defines:

- `value(targets, predictions, num_labels) -> float`: the metric of `[rows]` and `[rows]`;
- `resampled(targets, predictions, num_labels, counts) -> [runs, resamples]`: the same of `[rows]` and `[runs, rows]`,
  where row r was drawn `counts[r, b]` times in resample b (`[rows, resamples]`, float; every column has the same sum);
- if answers must be generated for it: `score_rows(wanted, written) -> [rows]`, the score of each answer, and
  `check(wanted)`, which refuses answers that cannot be scored.

A metric is a fraction between -1 and 1, and 1 is perfect; an unbounded one is cut at -1. It is above 0 for predictions
that are better than chance, and defined for all rows there are: with one class only, and with constant predictions.
`tests/metrics/test_contract.py` holds every metric of the table to this.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal

#: What a metric compares: class indices, numbers, or written answers.
Compares = Literal["classes", "values", "answers"]


@dataclass(frozen=True)
class Metric:
    """What the rest of the program has to know of a metric.

    Attributes:
        name: Its name, in the configuration and as a file of this folder.
        compares: What the targets and predictions are: class indices, regression targets and values, or, for written
            answers, the weight of each row and its score times the weight.
        default: Whether it is the metric of a task that names none.
        two_labels: Whether it needs exactly two labels, the second of which is the positive one.
        generates: Whether answers must be generated. A score is then one a row, with weight 1; without it the rows'
            target tokens and summed negative log-likelihoods are the weights and the scores.
    """

    name: str
    compares: Compares
    default: bool = False
    two_labels: bool = False
    generates: bool = False

    def implementation(self) -> ModuleType:
        """The file that computes it; imported here, since it may need scikit-learn or scipy."""
        module = import_module(f"ortholora.metrics.{self.name}")
        needed = ["value", "resampled", *(["score_rows", "check"] if self.generates else [])]
        missing = [name for name in needed if not callable(getattr(module, name, None))]
        assert not missing, f"metric `{self.name}`: metrics/{self.name}.py does not define {', '.join(missing)}"
        return module


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "classes", default=True),
        Metric("f1", "classes", two_labels=True),
        Metric("accuracy_f1", "classes", two_labels=True),
        Metric("macro_f1", "classes"),
        Metric("matthews", "classes"),
        Metric("pearson", "values"),
        Metric("spearman", "values"),
        Metric("pearson_spearman", "values", default=True),
        Metric("exact_match", "answers", generates=True),
        Metric("inverse_perplexity", "answers", default=True),
        Metric("rouge_l", "answers", generates=True),
    )
}


def fitting(*compares: Compares) -> list[str]:
    """Names of the metrics that compare any of these, in the order of the table."""
    return [metric.name for metric in METRICS.values() if metric.compares in compares]


def default(compares: Compares) -> str:
    """Name of the metric of a task that names none."""
    return next(name for name in fitting(compares) if METRICS[name].default)
