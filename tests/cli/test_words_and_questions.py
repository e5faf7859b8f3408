"""Words that are no text, devices for files, numbers without a bound, and questions in broken JSON."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from command_line import Cli

from ortholora.cli.questions import read_questions
from ortholora.errors import UserError


@pytest.mark.parametrize(
    "words",
    [
        ["train", "tiny.yaml", "--tasks", "\udc80"],
        ["train", "tiny.yaml", "--set", "seed=\udc80"],
        ["train", "\udc80.yaml"],
        ["compare", "tiny.yaml", "--out", "\udc80"],
        ["evaluate", "\udcff"],
        ["predict", "run", "--task", "\udc80", "x"],
        ["predict", "run", "--task", "topic", "\udcc3"],
        ["predict", "run", "--task", "topic", "--file", "\udcc3"],
    ],
)
def test_words_that_are_no_text(cli: Cli, words: list[str]) -> None:
    assert "no text" in cli.complaint(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "tiny.yaml", "--jobs", "1000000000"],
        ["train", "tiny.yaml", "--max-steps", "10000000000"],
    ],
)
def test_numbers_have_a_bound(cli: Cli, words: list[str]) -> None:
    result = cli(*words)
    assert result.exit_code == 2
    assert "Invalid value" in result.output or "less than" in result.output


@pytest.mark.parametrize("seeds", ["4294967296", "1_0", "４", "0,", " ", "1" * 5000])
def test_seeds(cli: Cli, seeds: str) -> None:
    assert "below 2^32" in cli.complaint("train", "tiny.yaml", "--seeds", seeds)


def asked(file: Path | None = None, dialogues: bool = True) -> list[object]:
    return read_questions(None, file, 1, dialogues)


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero", "/dev/null"])
def test_a_device_holds_no_questions(device: str) -> None:
    with pytest.raises(UserError, match="a device, not a file"):
        asked(Path(device))


@pytest.mark.parametrize("line", ["[" * 9000, "9" * 5000, '"' + "x" * 100, "[" + "9" * 5000 + "]", "[1"])
def test_a_line_that_only_begins_like_json_is_a_text(tmp_path: Path, line: str) -> None:
    (tmp_path / "asked").write_text(line)
    assert asked(tmp_path / "asked") == [line]


def test_bytes_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asked").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="asked cannot be read"):
        asked(tmp_path / "asked")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))
    with pytest.raises(UserError, match="Standard input cannot be read"):
        asked()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("café\n".encode()), encoding="ascii"))
    assert asked() == ["café"]
