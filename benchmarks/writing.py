"""Write a benchmark's figures with what is needed to judge them: date, command, commit, hardware, versions."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ortholora.runs.provenance import commit, hardware, versions

#: Taken when the benchmark starts: the tree may change while it runs.
COMMIT = commit()


def save(path: Path, command: str, results: Any, text: str) -> None:
    """Write JSON to `path` and the table beside it."""
    content = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "commit": COMMIT,
        "hardware": hardware(),
        "versions": versions(),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, [":---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
