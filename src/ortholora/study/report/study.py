"""`report.html`: a study as one page. The answer first, then what it rests on, then how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ortholora.runs.provenance import VERSION
from ortholora.study.folders import REPORT_FILE
from ortholora.study.report.answer import answer
from ortholora.study.report.atlas import atlas_section
from ortholora.study.report.curves import has_curves
from ortholora.study.report.figures import curve_panels, intervals, keys, recovered, sweep_panels
from ortholora.study.report.page import (
    Card,
    Cards,
    Folded,
    Page,
    Panels,
    Paragraph,
    Part,
    Section,
    Sentences,
    Table,
    write_page,
)
from ortholora.study.report.repeat import origin_section
from ortholora.study.report.sweep import sweep_lines, sweep_table
from ortholora.study.report.tables import cost_table, dev_table, differences_of, results_table, runs_table
from ortholora.study.report.wording import listed, sign
from ortholora.study.stored import StoredStudy, read_study


def write_report(folder: Path, out: Path | None = None) -> StoredStudy:
    """Write the page of a study.

    Args:
        folder: The study's folder.
        out: The file; default: `report.html` in the folder.

    Returns:
        The study, as it was read.

    Raises:
        UserError: The folder is no study, or a file of it is damaged.
        OSError: The page cannot be written.
    """
    study = read_study(folder)
    write_page(out or folder / REPORT_FILE, study_page(study))
    return study


def study_page(study: StoredStudy) -> Page:
    """The page of a study, finished or not."""
    footer = f"Written by ortholora {VERSION}. One file; it loads nothing and runs no script."
    if study.summary is None:
        return Page(
            study.name, "There is no answer yet.", _unfinished(study), footer, study.missing, "Ortho-LoRA study"
        )
    summary = study.summary
    found = answer(summary)
    sections = [
        _answer(summary),
        _gap(summary),
        *_curves(summary),
        atlas_section(summary, study.histories, found.use),
        Section("What it costs", [cost_table(summary)]),
        origin_section(summary["provenance"], study.settings, summary["notes"]),
    ]
    return Page(study.name, found.sentence, sections, footer, study.missing, context_of(summary))


def context_of(summary: dict[str, Any]) -> str:
    """What was compared, in a line."""
    seeds, tasks = len(summary["seeds"]), len(summary["tasks"])
    config = summary["provenance"].get("config", {})
    backbone = config.get("backbone") if isinstance(config, dict) else None
    counts = [f"{tasks} tasks", f"{len(summary['methods'])} methods", "1 seed" if seeds == 1 else f"{seeds} seeds"]
    return " · ".join(["Ortho-LoRA study", *counts, *([str(backbone)] if isinstance(backbone, str) else [])])


def answer_cards(summary: dict[str, Any]) -> Cards:
    """What to use, how sure, at what cost."""
    found = answer(summary)
    kinds = {"single": "an adapter for each task", "joint": "one adapter, trained on all tasks as they come"}
    rule = summary["rules"].get(found.use, {})
    blocks = {"matrix": "each LoRA matrix", "layer": "each layer", "all": "the whole adapter"}
    block = blocks.get(str(rule.get("block")), str(rule.get("block")))
    if rule.get("merge"):
        kinds[found.use] = "one adapter, merged out of the single ones"
    kind = kinds.get(found.use) or (
        f"one adapter; rule {rule['rule']}, judged on {block}" if rule.get("rule") else "one adapter for all tasks"
    )
    return Cards([Card("Use", found.use, kind + "."), Card("How sure", *found.sure), Card("At what cost", *found.cost)])


def _answer(summary: dict[str, Any]) -> Section:
    sentences: list[Part] = [Sentences(summary["verdict"])] if summary["verdict"] else []
    on_dev = dev_table(summary)
    tables: list[Part] = [results_table(summary), *([] if on_dev is None else [on_dev])]
    grouped = [f"`{name}`" for name, rule in summary["rules"].items() if rule.get("groups")]
    but = f" (of {listed(grouped)}: one for each group of tasks)" if grouped else ""
    return Section(
        "The answer",
        [answer_cards(summary), *tables, Folded("The same in sentences, one finding each", sentences)],
        "`single` trains an adapter for each task alone, `joint` one adapter on all tasks at once. Every other method "
        f"is one adapter, too{but}, with a rule or a setting that is to make up for what joint training loses.",
    )


def _gap(summary: dict[str, Any]) -> Section:
    methods = list(summary["methods"])
    shown = [method for method in methods if method != "joint"]
    panels = intervals({m: differences_of(summary, m) for m in shown}, methods, "points")
    parts: list[Part] = [
        Panels(panels, caption="Filled marks: the 95 % interval does not hold zero. All panels have one scale.")
    ]
    if (panel := recovered(summary)) is not None:
        parts.append(Panels([panel], caption="0 % is joint training, 100 % an adapter for each task."))
    elif summary["rules"]:
        parts.append(
            Paragraph("A share of the gap recovered is not stated, because " + summary["recovered_reason"] + ".")
        )
    if "sweep" in summary:
        header, rows = sweep_table(summary["sweep"])
        plain = [[cell.replace("**", "") for cell in row] for row in rows]
        chosen = Panels(
            sweep_panels(summary["sweep"], methods),
            keys(methods, [m for m in methods if m in summary["sweep"]["methods"]]),
            "Large marks: what the method was given.",
        )
        table = Table(header, plain, "Scores on the rows that were cut off to choose on.")
        parts += [
            chosen,
            Folded("What was tried, in words and numbers", [Sentences(sweep_lines(summary["sweep"])), table]),
        ]
    lead = "The gap is what an adapter for each task gains over joint training. A rule is to close it."
    if sign(summary["gap"]) <= 0:
        lead += " Here there is no sure gap to close."
    return Section("The gap, and what closes it", parts, lead)


def _curves(summary: dict[str, Any]) -> list[Section]:
    curves = summary.get("curves", {})
    if not has_curves(curves):
        return []
    methods = list(summary["methods"])
    seeds = len(summary["seeds"])
    drawn = "Lines: means over the seeds; bands: from the lowest to the highest seed." if seeds > 1 else ""
    return [
        Section(
            "How the tasks learned",
            [Panels(curve_panels(curves, methods), keys(methods), drawn)],
            "Where the joint line stays above single, joint training has not learned the task yet. Where both reach "
            "the bottom and single is still better, it generalises worse.",
        )
    ]


def _unfinished(study: StoredStudy) -> list[Section]:
    records = study.records or []
    tasks = list(dict.fromkeys(task for record in records for task in record.tasks))
    parts: Sequence[Part] = [runs_table(records, tasks)] if records else [Paragraph("No run is finished yet.")]
    sections = [Section("What there is", parts)]
    if study.histories:
        sections.append(atlas_section({}, study.histories))
    if records:
        provenance = records[0].provenance
        sections.append(origin_section(provenance, study.settings, []))
    return sections
