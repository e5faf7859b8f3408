"""The tiny language model's tokenizer, and what of a row is a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ortholora.text.prompts import IGNORED, Marked
from tiny_language import write_language_model


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from ortholora.models.backbone import load_tokenizer

    return load_tokenizer(str(write_language_model(tmp_path_factory.mktemp("llama"))))


@pytest.fixture(scope="session")
def targets(tokenizer: Any) -> Callable[[Marked], str]:
    return lambda marked: tokenizer.decode([label for label in marked.labels if label != IGNORED])
