"""What the commands show of their results: tables, answers, sentences."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ortholora.cli.console import console, say


def show_trained(results: dict[Path, Any]) -> None:
    """Show the runs of `train`: results, how the steps were computed, and what to do next."""
    from ortholora.models.saving import HEADS

    table = Table("run", "task", "metric", "value", title=_title(next(iter(results.values())).scored_on))
    for path, result in results.items():
        for task, value in result.metrics.items():
            table.add_row(path.name, task, result.metric_names[task], f"{100 * value:.2f}")
        table.add_row(path.name, "average", "", f"{100 * sum(result.metrics.values()) / len(result.metrics):.2f}")
    console.print(table)
    first, record = next(iter(results.items()))
    _say_how(record)
    saved = ", ".join(str(where) for where in results)
    heads = ", with the task heads beside it" if (first / HEADS).is_file() else ""
    say(f"Saved in {saved}: a plain PEFT adapter{heads}.")
    _suggest_predict(first)


def _say_how(record: Any) -> None:
    padding = f"{100 * record.padding:.0f} % padding"
    say(f"{record.micro_batches:.1f} micro-batches a step, {padding}, {1000 * record.step_seconds:.0f} ms a step.")
    for task, step in record.stopped.items():
        say(f"{task} stopped after step {step}: {record.metric_names[task]} on dev had not got better for a while.")
    for line in record.provenance.get("capture", []):
        say(f"Capture: {line}.")


def show_study(out: Path, summary: dict[str, Any]) -> None:
    """Show a study: its table, the verdict, and what to do next."""
    from ortholora.study.folders import adapter_to_try
    from ortholora.study.report.markdown import to_table

    console.print(to_table(summary))
    for sentence in summary["verdict"]:
        console.print(f"• {sentence}", highlight=False)
    for note in summary.get("notes", []):
        console.print(f"[dim]• {note}[/dim]", highlight=False)
    say(f"Wrote {out / 'report.html'} (open it in a browser), summary.md, summary.json and summary.png")
    _suggest_predict(adapter_to_try(out, summary))


def show_diagnosis(out: Path, found: dict[str, Any]) -> None:
    """Show a diagnosis: the verdict, and the command to run next."""
    console.print(found["headline"], style="bold", markup=False, highlight=False)
    for sentence in found["verdict"]:
        console.print(f"• {sentence}", markup=False, highlight=False)
    say(f"Wrote {out / 'report.html'}, diagnosis.md and diagnosis.json")
    console.print("Hardly tested against outcomes yet: take it for what to try first.", style="dim")
    console.print("To decide it:", style="bold")
    print(f"  {found['next'].replace('ortholora', _command(), 1)}")


def show_made(made: Any) -> None:
    """Show a new configuration: its tasks, what was done besides, and what to do next."""
    table = Table("task", "kind", "training rows", "dev rows", "test rows")
    for task in made.tasks:
        test = "–" if task.test is None else f"{len(task.test):,}"
        table.add_row(task.name, task.spec.kind, f"{len(task.train):,}", f"{len(task.dev):,}", test)
    console.print(table)
    for note in (note for draft in made.drafts for note in draft.notes):
        say(f"{note}.")
    for path in made.files:
        say(f"Wrote {path}.")
    say(f"Wrote {made.path}: look it over, and then")
    for command in ("check", "diagnose", "train"):
        say(f"  ortholora {command} {shlex.quote(str(made.path))}")


def show_export(out: Path, card: Any) -> None:
    """Say what an exported folder holds, and how it is loaded."""
    from ortholora.models.saving import HEADS

    with_heads = (out.expanduser() / HEADS).is_file()
    say(f"Wrote {out}: {card.backbone} with the adapter merged into its weights, for plain transformers.")
    if with_heads:
        say(f"Load it with AutoModel; {HEADS} and heads.json have the heads of {len(card.tasks)} tasks.")
    else:
        say("Load it with AutoModelForCausalLM.")
    say(f"{out / 'README.md'} has the lines of Python.")


def scores_table(scores: Mapping[str, Any], metrics: dict[str, str], parts: Mapping[str, str]) -> Table:
    """Every score of every task, the task's own metric first and bold.

    Args:
        scores: Task → its `Scored`.
        metrics: Task → its own metric.
        parts: Task → what it was scored on: `dev`, `test`, or a file.
    """
    table = Table(
        "task", "metric", "value", "95 %", "rows", title=f"{_title(parts)}, in points; bold: the task's metric"
    )
    for task, scored in scores.items():
        main, (low, high) = metrics[task], scored.interval
        value = f"[bold]{100 * scored.scores['main']:.2f}[/bold]"
        table.add_row(task, f"[bold]{main}[/bold]", value, f"{100 * low:.1f} … {100 * high:.1f}", f"{scored.rows:,}")
        for name, value in scored.scores.items():
            if name == "loss":
                table.add_row(task, "loss, nats a token", f"{value:.4f}")
            elif name not in ("main", main):
                table.add_row(task, name, f"{100 * value:.2f}")
    if left_out := sum(scored.left_out for scored in scores.values()):
        table.caption = f"{left_out:,} bad rows were left out."
    return table


def _title(parts: Mapping[str, str]) -> str:
    """Which rows results are of: task → `dev`, `test`, or the one file that there is."""
    if not set(parts.values()) <= {"dev", "test"}:
        return f"Results on {escape(next(iter(parts.values())))}"
    of_test = [task for task, part in parts.items() if part == "test"]
    if len(of_test) < len(parts) and of_test:
        return f"Dev results (test results: {', '.join(of_test)})"
    return "Test results" if of_test else "Dev results"


def score_lines(scores: Mapping[str, Any], metrics: dict[str, str]) -> list[str]:
    """Each task's own metric in points: task, metric and value, with tabs between them."""
    return [f"{task}\t{metrics[task]}\t{100 * scored.scores['main']:.2f}" for task, scored in scores.items()]


def to_line(question: Any, answer: Any) -> str:
    """An answer, a tab, and the question: one line, whatever is in them."""
    if isinstance(question, tuple):
        text = " | ".join(question)
    else:
        text = question if isinstance(question, str) else json.dumps(question)
    if answer.text is not None:
        shown = answer.text
    elif answer.value is not None:
        shown = f"{answer.value:.3f}"
    else:
        shown = f"{answer.label} ({answer.scores[answer.label]:.0%})"
    return f"{shown}\t{text}".replace("\r", "\\r").replace("\n", "\\n")


def _suggest_predict(folder: Path) -> None:
    from ortholora.models.loading import load_card

    task = load_card(folder).tasks[0]
    texts = '"a text of your own"' if task.num_texts == 1 else '"a first text" "a second text"'
    console.print("Try it:", style="bold")
    print(f"  {_command()} predict {shlex.quote(str(folder))} --task {task.name} {texts}")


def _command() -> str:
    """How this command was called, so that the suggested one can be pasted."""
    called = sys.argv[0]
    return called if Path(called).name == "ortholora" and os.sep in called and not _on_path(called) else "ortholora"


def _on_path(called: str) -> bool:
    return str(Path(called).resolve().parent) in os.environ.get("PATH", "").split(os.pathsep)
