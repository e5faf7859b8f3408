"""What every test shares: one thread, seeded draws, hypothesis without a database or a clock."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tests",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_precision_left_over() -> None:
    """`TrainingArguments(bf16=True)` of transformers 4 sets it for the whole process, and so for the next test."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
