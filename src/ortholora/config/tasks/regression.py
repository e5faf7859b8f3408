"""`kind: regression`: a number."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ortholora.config.tasks.base import Form
from ortholora.config.tasks.encoder import EncoderTask
from ortholora.metrics.table import Compares


class RegressionTask(EncoderTask):
    """A number for a text or a pair, by a head on an encoder (squared error)."""

    kind: Literal["regression"] = "regression"
    form: ClassVar[Form] = "values"
    compares: ClassVar[tuple[Compares, ...]] = ("values",)
    #: A number has no classes.
    labels: ClassVar[None] = None

    standardise: bool = Field(
        True,
        description="Learn `(target − mean) / standard deviation` of the training targets, so that the loss does not "
        "depend on the target's units. `false`: the squared error of the targets as they are.",
    )
