"""What every test shares: one thread, seeded draws, hypothesis without a database or a clock."""

from __future__ import annotations

import gc
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
gc.disable()  # while thousands of tests are collected, which are no garbage


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What lives when a test begins is no garbage of that test.

    Every training asks for a full collection, twice. Each looked at all modules, classes and collected tests: a second
    of computing, several times what a tiny training takes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_precision_left_over() -> None:
    """`TrainingArguments(bf16=True)` of transformers 4 sets it for the whole process, and so for the next test."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
