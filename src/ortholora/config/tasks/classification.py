"""`kind: classification`: one class out of several."""

from __future__ import annotations

from typing import ClassVar, Literal

from ortholora.config.tasks.base import Form
from ortholora.config.tasks.encoder import EncoderTask
from ortholora.config.tasks.labelled import LabelledTask
from ortholora.metrics.table import Compares


class ClassificationTask(LabelledTask, EncoderTask):
    """A class for a text or a pair, by a head on an encoder (cross-entropy)."""

    kind: Literal["classification"] = "classification"
    form: ClassVar[Form] = "classes"
    compares: ClassVar[tuple[Compares, ...]] = ("classes",)
