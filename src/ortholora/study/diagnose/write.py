"""A diagnosis as files: all figures as JSON, what matters as Markdown, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ortholora.files import write_json, write_text
from ortholora.study.diagnose.page import CAUTION, page_of
from ortholora.study.diagnose.read import JSON_FILE
from ortholora.study.diagnose.tables import TABLES
from ortholora.study.folders import REPORT_FILE
from ortholora.study.report.page import write_page

MARKDOWN_FILE = "diagnosis.md"


def write_diagnosis(out: Path, found: dict[str, Any]) -> None:
    """Write the files, each whole or not at all; the one with all figures last."""
    write_text(out / MARKDOWN_FILE, to_markdown(found))
    write_report(out / REPORT_FILE, found)
    write_json(out / JSON_FILE, found)


def write_report(path: Path, found: dict[str, Any]) -> None:
    """Write the page.

    Args:
        path: The HTML file; its folder must exist.
        found: All figures, as `diagnose` returned them, or read back.
    """
    write_page(path, page_of(found))


def to_markdown(found: dict[str, Any]) -> str:
    """The verdict and the tables as Markdown."""
    lines = ["# Diagnosis", "", f"**{found['headline']}**", "", *(f"- {sentence}" for sentence in found["verdict"]), ""]
    lines += [CAUTION, "", "To decide it:", "", "```bash", found["next"], "```", ""]
    for table in TABLES:
        shown = table(found)
        if shown is not None:
            lines += [f"## {shown.caption}", "", *_rows([shown.header, *shown.rows], shown.left), ""]
            lines += [shown.note, ""] if shown.note else []
    origin = found["provenance"]
    lines.append(f"Commit {origin['commit'] or 'unknown'}, {origin['date']}. All figures: {JSON_FILE}.")
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", ", ") for cell in row] for row in rows]
    marks = ["---" if column < left else "---:" for column in range(len(rows[0]))]
    return ["| " + " | ".join(row) + " |" for row in (cells[0], marks, *cells[1:])]
