"""What every test shares: one thread, seeded draws, hypothesis without a database or a clock; a template's code."""

from __future__ import annotations

import gc
import os
from typing import Any

import jinja2
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
_compile, _compiled = jinja2.Environment.compile, {}


def _compile_once(environment: jinja2.Environment, source: Any, *rest: Any) -> Any:
    """PEFT writes a card with every adapter, and compiles its template each time: longer than a tiny step takes."""
    if not environment.shared or any(rest):
        return _compile(environment, source, *rest)
    if (environment, source) not in _compiled:
        _compiled[environment, source] = _compile(environment, source, *rest)
    return _compiled[environment, source]


jinja2.Environment.compile = _compile_once
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
