"""`kind: regression`: a number."""

from __future__ import annotations

from typing import ClassVar, Literal

from ortholora.config.metric_names import MetricName
from ortholora.config.tasks.encoder import EncoderTask


class RegressionTask(EncoderTask):
    """A number for a text or a pair, by a head on an encoder (squared error)."""

    kind: Literal["regression"] = "regression"
    default_metric: ClassVar[MetricName] = "pearson_spearman"
    #: A number has no classes.
    labels: ClassVar[None] = None
