"""The blocks of code in the documents, and what the comment above a block tells the tests.

A comment is invisible to readers. `<!-- test: given model, tasks -->`: the block uses these names, and the test brings
them. `<!-- test: not run: REASON -->`: the block cannot run. Without a comment a block stands on its own feet, and on
what the blocks above it on its page defined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "rules").glob("*.md"))]

_BLOCK = re.compile(
    r"^(?:<!-- test: (?P<note>.*?) -->\n)?^(?P<indent> *)```(?P<language>[\w{}-]+)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code: its page relative to the repository, the line it starts in, and what is said above it."""

    page: str
    line: int
    language: str
    code: str
    given: tuple[str, ...] = ()
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str, pages: list[Path] = PAGES) -> list[Block]:
    """All blocks in a language, in the order of the pages."""
    return [block for page in pages for block in _blocks_of(page) if block.language == language]


def _blocks_of(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), []
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        given, not_run = _read(match["note"] or "", f"{name}:{line}")
        found.append(Block(name, line, match["language"], match["code"], given, not_run))
    assert len(found) == len(re.findall(r"^ *```\w", text, re.MULTILINE)) + text.count("```{"), f"{name}: a lost block"
    notes = len(re.findall(r"^<!-- test:", text, re.MULTILINE))
    assert notes == sum(bool(block.given or block.not_run) for block in found), f"{name}: a lost note"
    return found


def _read(note: str, where: str) -> tuple[tuple[str, ...], str]:
    verb, _, rest = note.partition(" ")
    if not note:
        return (), ""
    if verb == "given":
        return tuple(name.strip() for name in rest.split(",")), ""
    assert note.startswith("not run: "), f"{where}: {note!r} should be 'given NAMES' or 'not run: REASON'"
    return (), note.removeprefix("not run: ")
