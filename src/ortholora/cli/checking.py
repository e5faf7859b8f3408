"""`check`: what is looked at, and how it is shown."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ortholora.cli.console import aside, console, refuse, say, warn
from ortholora.cli.options import Choices
from ortholora.cli.reading import choose
from ortholora.cli.voice import hush_libraries
from ortholora.study.check.findings import Findings


def run_check(choices: Choices, measure: bool) -> Findings:
    """Look at a configuration as `train` with the same options would see it; what is wrong is in what is returned."""
    found = Findings()
    with found.attempt():
        chosen = choose(choices)
        from ortholora.data.read import read_each
        from ortholora.study.check.check import check

        with aside().status("Reading the tasks"):
            tasks, wrong = read_each(chosen.config, base=chosen.base, data_dir=chosen.data_dir)
        found.errors += wrong
        hush_libraries()
        with aside().status("Training a few steps" if measure else "Looking at the model"):
            out = None if choices.out is None else chosen.out
            check(chosen.config, tasks, found, out, chosen.seeds or [], measure)
    return found


def show_check(found: Findings) -> None:
    """Show figures as far as there are some, then notes, warnings and errors, the worst last."""
    facts = found.facts
    if facts.get("tasks"):
        _show_tasks(facts["tasks"])
    if "plan" in facts:
        _show_plan(facts["plan"])
        _show_capture(facts["capture"])
        _show_memory(facts["memory"])
    if "time" in facts:
        _show_time(facts["time"], facts["plan"]["steps"])
    for note in found.notes:
        say(f"Note: {note}.")
    for warning in found.warnings:
        say(f"Warning: {warning}.")
    for error in found.errors:
        refuse(error)
    if not found.errors:
        say(f"No errors, {len(found.warnings) or 'no'} warning{'s' * (len(found.warnings) != 1)}.")


def complain(found: Findings, strict: bool) -> None:
    """Say no more than why the exit code is not 0: errors, and with `strict` warnings."""
    for warning in found.warnings if strict else ():
        warn(f"{warning}.")
    for error in found.errors:
        refuse(error)


def _show_tasks(tasks: dict[str, Any]) -> None:
    table = Table("task", "part", "rows", "answers", title="Data")
    for name, task in tasks.items():
        for part, own in task["parts"].items():
            first = part == "train"
            table.add_row(name if first else "", part, f"{own['rows']:,}", _answers(own))
    console.print(table)


def _answers(part: dict[str, Any]) -> str:
    """Shares of the classes, the greatest first: what always answering with the first would get."""
    if "values" in part:
        least, mean, greatest = (part["values"][key] for key in ("least", "mean", "greatest"))
        return f"{least:g} to {greatest:g}, mean {mean:.3g}"
    if "classes" not in part:
        return "open answers"
    shares = sorted(part["classes"].items(), key=lambda item: -item[1])
    shown = ", ".join(f"{label} {rows / part['rows']:.0%}" for label, rows in shares[:_CLASSES_SHOWN])
    left = len(shares) - _CLASSES_SHOWN
    return f"{shown} and {left} more" if left > 0 else shown


_CLASSES_SHOWN = 4


def _show_plan(plan: dict[str, Any]) -> None:
    say(
        f"Plan: {plan['steps']:,} steps of {sum(plan['quota'].values()):,} rows, {plan['tokens']:,.0f} tokens; "
        f"{plan['micro_batches']:.1f} micro-batches a step (`{plan['layout']}`), {plan['padding']:.0%} padding."
    )
    passes = ", ".join(f"{task} {times:.2g}" for task, times in plan["passes"].items())
    say(f"Passes over the training rows: {passes}.")


def _show_capture(capture: dict[str, Any]) -> None:
    for line in capture["summary"]:
        say(f"Capture: {line}.")
    if not capture["tried_out"]:
        say("Capture: not tried out (--no-measure); the first step of a training does it.")


def _show_memory(memory: dict[str, Any]) -> None:
    parts = ", ".join(f"{_PARTS[name]} {_size(size)}" for name, size in memory["bytes"].items() if size is not None)
    least = "at least " if memory["is_lower_bound"] else "about "
    available = "" if memory["available"] is None else f" of {_size(memory['available'])} available"
    say(f"Memory: {least}{_size(memory['estimate'])}{available} on {memory['device']} ({parts}).")


_PARTS = {
    "frozen": "backbone",
    "trained": "adapter and heads",
    "gradients": "their gradients",
    "optimizer": "AdamW",
    "task_gradients": "task gradients",
    "activations": "activations",
    "rest": "Python, libraries and rows",
}


def _show_time(found: dict[str, Any], steps: int) -> None:
    from ortholora.cli.progress import duration

    whole, step = duration(found["training_seconds"]), f"{found['step_seconds']:.2g} s"
    measured = f"{found['measured_steps']} steps were tried"
    say(f"Time: about {whole} for {steps:,} steps of {step}, without evaluations ({measured}).")


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
