"""`init`: from files to a configuration at the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli

from ortholora.cli import asking
from ortholora.config.file import load_config


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = "words\tsource\tmood\n" + "".join(f"some words {i}\t{'xyz'[i % 3]}\t{'ab'[i % 2]}\n" for i in range(40))
    folder = tmp_path / "own"
    folder.mkdir()
    for part in ("train", "dev"):
        (folder / f"tone_{part}.tsv").write_text(rows)
    return folder


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(tmp_path)


def test_yes_says_what_was_taken(cli: Cli, files: Path) -> None:
    shown = cli.ok("init", files, "--yes", "--backbone", "some/encoder")
    assert "tone: Which column holds the labels? Taken: mood" in shown
    assert "ortholora train tasks.yaml" in shown
    config = load_config(files.parent / "tasks.yaml")
    assert (config.backbone, config.tasks[0].columns) == ("some/encoder", (("words",), "mood"))


def test_without_a_terminal_and_without_yes_it_is_refused(cli: Cli, files: Path) -> None:
    message = cli.complaint("init", files)
    assert "Which column holds the labels?" in message
    assert "no terminal to ask at" in message
    assert "--yes" in message
    assert not (files.parent / "tasks.yaml").exists()


def test_the_answer_of_the_user_counts(cli: Cli, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_at_a_terminal", lambda: True)
    result = cli("init", files, "--out", "mine.yaml", input="mood\nmy/encoder\n")
    assert result.exit_code == 0, result.output
    assert "Which backbone (an encoder: a hub id or a folder)?" in result.output
    assert load_config(files.parent / "mine.yaml").backbone == "my/encoder"


def test_a_path_without_data_is_refused(cli: Cli) -> None:
    assert "nothing there" in cli.complaint("init", "absent.tsv", "--yes")
