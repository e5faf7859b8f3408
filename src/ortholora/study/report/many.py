"""Several studies in one page: a ledger of gaps, and of what closes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ortholora.runs.provenance import VERSION
from ortholora.study.report.answer import answer
from ortholora.study.report.figures import intervals
from ortholora.study.report.page import (
    Cell,
    Folded,
    Page,
    Panels,
    Section,
    Sentences,
    Table,
    write_page,
)
from ortholora.study.report.study import answer_cards, context_of
from ortholora.study.report.tables import results_table
from ortholora.study.report.wording import difference, points, sign
from ortholora.study.stored import StoredStudy, read_study


def write_ledger(folders: Sequence[Path], out: Path) -> None:
    """Write the page of several studies.

    Args:
        folders: Their folders.
        out: The file.

    Raises:
        UserError: A folder is no study, or a file of it is damaged.
        OSError: The page cannot be written.
    """
    write_page(out, ledger_page([read_study(folder) for folder in folders]))


def ledger_page(studies: Sequence[StoredStudy]) -> Page:
    """The page of several studies; those without an answer yet are named."""
    names = _names(studies)
    pairs = list(zip(names, studies, strict=True))
    whole = {name: study.summary for name, study in pairs if study.summary is not None}
    warnings = [f"{name}: {study.missing[0]}" for name, study in pairs if not study.finished]
    methods = list(dict.fromkeys(method for summary in whole.values() for method in summary["methods"]))
    footer = f"Written by ortholora {VERSION}. One file; it loads nothing and runs no script."
    sections = [_overview(whole, methods), *(_study(name, summary) for name, summary in whole.items())] if whole else []
    return Page(
        "Studies side by side", _lead(whole), sections, footer, warnings, f"Ortho-LoRA · {len(studies)} studies"
    )


def _names(studies: Sequence[StoredStudy]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    paths = [study.folder.resolve() for study in studies]
    return [_name(path, [other for other in paths if other != path]) for path in paths]


def _name(path: Path, others: Sequence[Path]) -> str:
    count = 1
    while any(other.parts[-count:] == path.parts[-count:] for other in others):
        count += 1
    return "/".join(path.parts[-count:])


def _lead(whole: dict[str, dict[str, Any]]) -> str:
    if not whole:
        return "There is no answer yet."
    sure = [name for name, summary in whole.items() if sign(summary["gap"]) > 0]
    closed = [name for name in sure if any(sign(rule["difference"]) > 0 for rule in whole[name]["rules"].values())]
    return (
        f"In {len(sure)} of {len(whole)} studies an adapter for each task is surely better than joint training. In "
        f"{len(closed)} of those some method with one adapter surely gains on joint training."
    )


def _overview(whole: dict[str, dict[str, Any]], methods: Sequence[str]) -> Section:
    others = [method for method in methods if method not in ("single", "joint")]
    rows: list[list[str | Cell]] = []
    for name, summary in whole.items():
        row: list[str | Cell] = [name, answer(summary).use, str(len(summary["tasks"])), str(len(summary["seeds"]))]
        row += [points(summary["methods"][method]["average"]["mean"], 1) for method in ("single", "joint")]
        row.append(Cell(difference(summary["gap"]), sign(summary["gap"])))
        row += [_of_a_rule(summary["rules"].get(method)) for method in others]
        rows.append(row)
    caption = (
        "Mean metrics in points; the gap is single − joint. Below the other methods: their difference to joint with "
        "its 95 % interval, and how much of the gap that recovers. ▲ surely better than joint, ▼ surely worse."
    )
    table = Table(["study", "use", "tasks", "seeds", "single", "joint", "gap", *others], rows, caption, left=2)
    entries = {
        method: {
            name: summary["gap"] if method == "single" else summary["rules"][method]["difference"]
            for name, summary in whole.items()
            if method == "single" or method in summary["rules"]
        }
        for method in methods
        if method != "joint"
    }
    panels = Panels(
        intervals(entries, methods, "points, mean over tasks"),
        caption="Filled marks: the 95 % interval does not hold zero. All panels have one scale.",
    )
    return Section("All studies", [table, panels])


def _of_a_rule(rule: dict[str, Any] | None) -> str | Cell:
    if rule is None:
        return "–"
    text = difference(rule["difference"])
    if rule["recovered"] is not None:
        mean, low, high = (f"{100 * value:.0f}" for value in (rule["recovered"]["mean"], *rule["recovered"]["ci95"]))
        text += f"\nrecovers {mean} % [{low}, {high}]"
    return Cell(text, sign(rule["difference"]))


def _study(name: str, summary: dict[str, Any]) -> Section:
    sentences = [*summary["verdict"], *summary["notes"]]
    parts = [answer_cards(summary), Folded("Results and findings", [results_table(summary), Sentences(sentences)])]
    return Section(name, parts, f"{answer(summary).sentence} ({context_of(summary).partition(' · ')[2]})")
