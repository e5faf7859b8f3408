"""A study's summary in its forms: as data, as text and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ortholora.files import write_json, write_text
from ortholora.study.report.curves import draw_curves, has_curves
from ortholora.study.report.markdown import to_markdown
from ortholora.study.report.picture import draw
from ortholora.study.report.sweep import draw_sweep


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write the files, each whole or not at all.

    Args:
        out: Folder to write to; it is made if need be.
        summary: What `summarise` returned.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "summary.json", summary)
    write_text(out / "summary.md", to_markdown(summary))
    draw(summary, out / "summary.png")
    if has_curves(summary["curves"]):
        draw_curves(summary, out / "curves.png")
    if "sweep" in summary:
        draw_sweep(summary["sweep"], out / "sweep.png")
