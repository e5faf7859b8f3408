"""What `predict` reads: questions typed as arguments, in a file, or on standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ortholora.cli.console import aside
from ortholora.config.bounds import read_text
from ortholora.errors import UserError

#: Most bytes of questions; all are held in memory.
_MOST_BYTES = 100_000_000


def read_questions(texts: list[str] | None, file: Path | None, num_texts: int, dialogues: bool) -> list[Any]:
    """Read the questions from the one place that was named.

    Args:
        texts: The arguments.
        file: The file of --file.
        num_texts: Texts of one question: two for a pair.
        dialogues: Whether a language model answers, which also takes JSON.

    Returns:
        One question a row: a tuple of texts; for a language model a text or the messages of a chat.

    Raises:
        UserError: There is no text, or half a pair, or the file cannot be read.
    """
    rows = _rows(texts, file, num_texts)
    return [_dialogue(row[0], quoted=not texts) for row in rows] if dialogues else rows


def check_both(data: Path | None, out: Path | None, texts: list[str] | None, file: Path | None) -> tuple[Path, Path]:
    """Check that --data and --out are there, and no other texts.

    Raises:
        UserError: They are not.
    """
    given = {"--data": data, "--out": out, "texts as arguments": texts, "--file": file}
    if data is None or out is None or texts or file:
        raise UserError(
            "--data, --out and --text go together",
            expected="a file of rows in --data and a new file for the answers in --out, and no other texts",
            found=", ".join(name for name, value in given.items() if value) or "--text alone",
            todo="for example: ortholora predict RUN --task NAME --data rows.csv --out answers.jsonl",
        )
    return data, out


def _rows(texts: list[str] | None, file: Path | None, num_texts: int) -> list[Any]:
    if texts and file:
        raise UserError(
            "Texts come from two sources",
            expected="texts as arguments, or --file, or standard input",
            found=f"{len(texts)} arguments and --file {file}",
            todo="use one of them",
        )
    if texts:
        if len(texts) % num_texts:
            raise UserError(
                "A pair is incomplete",
                expected="two texts for every pair",
                found=f"{len(texts)} text{'s' if len(texts) > 1 else ''}",
                todo="give first and second text one after the other, each in quotes",
            )
        return [tuple(texts[i : i + num_texts]) for i in range(0, len(texts), num_texts)]
    rows = [_row(number, line, num_texts) for number, line in enumerate(_lines(file), 1) if line.strip()]
    if not rows:
        raise UserError(
            "There is no text to predict",
            expected="texts as arguments, in --file, or on standard input, one a line",
            found="nothing",
            todo='for example: ortholora predict RUN --task NAME "some text"',
        )
    return rows


def _row(number: int, line: str, num_texts: int) -> tuple[str, ...]:
    if num_texts == 1:
        return (line,)
    row = tuple(line.split("\t"))
    if len(row) != 2 or not all(part.strip() for part in row):
        raise UserError(
            f"Line {number} is no pair",
            expected="two texts separated by one tab",
            found=repr(line),
            todo="correct or remove the line",
        )
    return row


def _dialogue(line: str, quoted: bool) -> Any:
    """A question to a language model: a text as it is, or the messages of a chat in JSON.

    In a file, where a line is a question, a text may be in JSON too (`quoted`), to hold line breaks.
    """
    if not line.lstrip().startswith(('"', "[", "{")):
        return line
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, thousands of brackets
        return line  # a text that starts like this
    is_chat = isinstance(content, list) and bool(content) and all(isinstance(part, dict) for part in content)
    is_chat = is_chat or (isinstance(content, dict) and "messages" in content)
    return content if is_chat or (quoted and isinstance(content, str)) else line


def _lines(file: Path | None) -> list[str]:
    if file is None:
        if sys.stdin.isatty():
            aside().print("[dim]Reading texts from standard input, one a line; end with Ctrl-D.[/dim]")
        return _from_standard_input().splitlines()
    try:
        return read_text(file, _MOST_BYTES, pipe=True).splitlines()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        found = str(getattr(error, "strerror", None) or error)
        raise UserError(
            f"--file {file} cannot be read", expected="a text file in UTF-8", found=found, todo="correct the option"
        ) from error


def _from_standard_input() -> str:
    content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than the {_MOST_BYTES:,} bytes that are read")
        return content.decode("utf-8-sig")
    except ValueError as error:
        raise UserError(
            "Standard input cannot be read",
            expected="text in UTF-8",
            found=str(error),
            todo="convert or split the text",
        ) from error
