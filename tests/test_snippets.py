"""What the documents show, runs: Python, configurations and command lines (`snippets.py` finds them)."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml

from documented import AFTER, GIVEN, as_module
from ortholora.cli.app import app
from ortholora.config.file import load_config
from ortholora.errors import UserError
from ortholora.study.methods import methods_of
from snippets import PAGES, ROOT, Block, blocks

PYTHON, YAML, BASH = (blocks(language) for language in ("python", "yaml", "bash"))
#: How many blocks of Python say that they cannot run.
NOT_RUN = 0
#: Typer 0.29 has its own copy of click's.
USAGE_ERROR = typer.BadParameter.__mro__[1]
#: What a part of a configuration is a part of.
BASE = {"backbone": "model", "tasks": [{"name": name, "train": "a.tsv", "dev": "b.tsv"} for name in ("one", "two")]}


# ---- Python ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
@pytest.mark.filterwarnings(
    "ignore:Could not find a config file:UserWarning",
    "ignore:PiSSA changes the base:UserWarning",
    "ignore:.gradient_checkpointing.* is deprecated:FutureWarning",
)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order, in one namespace; the names that a block says it is given are made anew for it."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "my_rules"}
    try:
        for block in (block for block in PYTHON if block.page == page and not block.not_run):
            if block.given:
                made = GIVEN[page](tmp_path, monkeypatch)
                names |= {name: made[name] for name in block.given}
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
            monkeypatch.setitem(sys.modules, "my_rules", as_module("my_rules", names))
        if page in AFTER:
            AFTER[page](names)
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_blocks_that_do_not_run_are_counted_and_have_a_reason() -> None:
    assert [len(block.not_run) > 10 for block in PYTHON if block.not_run] == [True] * NOT_RUN


# ---- configurations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_configuration_is_one(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of one is completed; the methods of a study exist, `my_rules` apart."""
    shown = yaml.safe_load(block.code)
    path = tmp_path / "shown.yaml"
    rest = {key: value for key, value in BASE.items() if key not in shown}
    path.write_text(block.code + (yaml.safe_dump(rest) if rest else ""), encoding="utf-8")
    config = load_config(path)
    assert shown.keys() <= config.model_fields_set
    monkeypatch.setitem(sys.modules, "my_rules", as_module("my_rules", {"loudest_wins": lambda gram, context: gram}))
    assert methods_of(config)


def test_a_mistake_in_a_configuration_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("study: {method: [single]}\n" + yaml.safe_dump(BASE), encoding="utf-8")
    with pytest.raises(UserError, match="method"):
        load_config(path)


# ---- command lines ---------------------------------------------------------------------------------------------

LINES = [(str(block), line) for block in BASH for line in block.code.replace("\\\n", " ").splitlines()]
OURS = [(where, line) for where, line in LINES if shlex.split(line, comments=True)[:1] == ["ortholora"]]


def parse(line: str) -> None:
    """Parse a command line as the program does, and run nothing.

    Raises:
        USAGE_ERROR: The command or an option does not exist, or an argument is missing.
    """
    _, name, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    with group.make_context("ortholora", [name, *arguments]) as context:
        _, command, rest = group.resolve_command(context, [name, *arguments])
        command.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize(("where", "line"), OURS, ids=[f"{where}-{i}" for i, (where, _) in enumerate(OURS)])
def test_a_command_line_exists(where: str, line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["ortholora learn my.yaml", "ortholora train my.yaml --speed 3", "ortholora predict"])
def test_a_mistake_in_a_command_line_is_seen(line: str) -> None:
    with pytest.raises(USAGE_ERROR):
        parse(line)


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    in_contributing = blocks("bash", [ROOT / "CONTRIBUTING.md"])
    lines = [*LINES, *((str(block), line) for block in in_contributing for line in block.code.splitlines())]
    named = {line.split()[1] for _, line in lines if line.startswith("make ")}
    assert {"demo", "test"} <= named <= targets


# ---- the search itself -----------------------------------------------------------------------------------------


def test_blocks_are_found() -> None:
    assert {"README.md", "docs/rules.md", "docs/trainers.md"} <= {block.page for block in PYTHON}
    assert {"README.md", "docs/compare.md"} <= {block.page for block in YAML}
    assert len(OURS) >= 5
    assert ROOT / "docs" / "rules" / "ortho.md" in PAGES


def test_notes_are_read_and_mistakes_in_them_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- test: given a, b -->\n```python\na + b\n```\n<!-- test: not run: slow -->\n```python\n1\n```\n"
    )
    first, second = blocks("python", [page])
    assert (first.given, first.code, first.line) == (("a", "b"), "a + b\n", 3)
    assert (second.given, second.not_run) == ((), "slow")
    for wrong in ("<!-- test: maybe -->\n```python\n1\n```\n", "<!-- test: given a -->\n\n```python\n1\n```\n"):
        page.write_text(wrong)
        with pytest.raises(AssertionError):
            blocks("python", [page])
